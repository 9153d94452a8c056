"""Being told to stop, wherever the agent is in its work."""


class Stopped(Exception):
    """The agent was asked to stop."""
