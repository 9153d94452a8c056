"""The allocation of blocks to devices (ZorBA, arXiv 2603.04436): pure functions, from profiles and a manifest to what each device trains."""

from coordinator.allocation.allocate import Allocation, Asking, Share, Uncovered, allocate
from coordinator.allocation.capacity import Asked

__all__ = ["Allocation", "Asked", "Asking", "Share", "Uncovered", "allocate"]
