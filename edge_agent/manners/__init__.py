"""What a good guest minds: each reason not to work is a small policy behind one interface (DESIGN section 8)."""

from edge_agent.manners.policy import Objection, Policy

__all__ = ["Objection", "Policy"]
