"""The allocation of blocks to devices (ZorBA, arXiv 2603.04436): pure functions, from profiles and a manifest to what each trains."""

from coordinator.allocation.allocate import Allocation, Asking, Share, Uncovered, allocate, in_turns
from coordinator.allocation.capacity import Asked, Base, blocks
from coordinator.allocation.turns import by_block, turn

__all__ = ["Allocation", "Asked", "Asking", "Base", "Share", "Uncovered", "allocate", "blocks", "by_block", "in_turns", "turn"]
