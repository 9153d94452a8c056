"""The arithmetic of `Parameters.add` and `Parameters.branches`: compiled where that could be built, else in numpy; the same bits."""

from zo.kernel_numpy import CHUNK, FEW, SLAB, exact_type, largest_sum

try:
    from zo.kernel_compiled import add_in_place, combine

    COMPILED = True
except ImportError:
    from zo.kernel_numpy import add_in_place, combine

    COMPILED = False

__all__ = ["CHUNK", "COMPILED", "FEW", "SLAB", "add_in_place", "combine", "exact_type", "largest_sum"]
