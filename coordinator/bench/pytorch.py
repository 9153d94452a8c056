"""PyTorch, which some benchmarks compare with; nothing else needs it, so it may not be there."""

from importlib.util import find_spec

from zo.errors import ConfigError

VERSION = "2.13.0"  # that was measured


def require(what: str) -> None:
    """ConfigError where it is not installed. what: needs it."""
    if find_spec("torch") is None:
        raise ConfigError(f"{what} needs torch: .venv/bin/python -m pip install torch=={VERSION}")
