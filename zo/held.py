"""The values of one group that is held, on their lattice: perturbed and updated in place, or copied into branches."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from zo import kernel, lattice
from zo.directions import BLOCK
from zo.group import Group
from zo.lattice import LIMIT, RangeError


class HeldGroup:
    """values: float32 [size], on the lattice and in the order of the direction stream; they are changed in place, never moved.

    threads: workers, where it is large. chunk: values per pass, a multiple of BLOCK. Neither changes a bit.
    """

    def __init__(self, run_key: int, group: Group, values: np.ndarray, threads: int, chunk: int) -> None:
        self.group, self.values = group, values
        self._run_key, self._threads, self._chunk = run_key, threads, chunk
        self._most = self._largest()  # |value|, in units: as much or less

    def bears(self, total: int) -> bool:
        """Whether no steps of which |steps| sum to `total` can lead out of the exact range; False where that is not known."""
        return self._most + total <= LIMIT

    def load(self, values: np.ndarray) -> None:
        """Put other values in place of these: [size]. RangeError, naming the tensor, where one is not on the lattice."""
        for name, given in self.group.split(values).items():
            lattice.check(name, given, self.group.log2_unit)
        self.values[:] = values
        self._most = self._largest()

    def check(self, seeds: np.ndarray, steps: np.ndarray) -> None:
        """RangeError if `add` would leave the exact range; looks at the values only when it might."""
        total = kernel.largest_sum(steps[None])
        kernel.exact_type(total)
        if self.bears(total):
            return
        self._most = self._largest()
        if self.bears(total):
            return
        for start in range(0, self.group.size, self._chunk):
            stop = min(start + self._chunk, self.group.size)
            delta = kernel.combine(self._run_key, self.group.id, seeds, steps[None], start, stop)[0]
            self._refuse(np.abs(self.values[start:stop] + delta.astype(np.float64) * self.group.unit), offset=start)

    def add(self, seeds: np.ndarray, steps: np.ndarray) -> None:
        """values += unit * sum of steps[i] * z(seeds[i]), in one pass; `check` comes before. seeds: uint64 [n]. steps: int64 [n]."""
        span = max(self._chunk, -(-len(self.values) // self._threads // BLOCK) * BLOCK)
        starts = range(0, len(self.values), span)

        def work(start: int) -> None:
            part = self.values[start : start + span]
            kernel.add_in_place(self._run_key, self.group.id, seeds, steps, part, start, self.group.unit, self._chunk)

        if len(starts) == 1:
            work(0)
        else:
            with ThreadPoolExecutor(self._threads) as pool:
                list(pool.map(work, starts))
        self._most += kernel.largest_sum(steps[None])

    def branched(self, seeds: np.ndarray, steps: np.ndarray) -> np.ndarray:
        """What `add` would make of the values in every branch: float32 [P, size]; RangeError where one leaves the exact range.

        steps: int64 [P, n].
        """
        values = kernel.combine(self._run_key, self.group.id, seeds, steps, 0, self.group.size)
        if self.bears(kernel.largest_sum(steps)):
            values *= np.float32(self.group.unit)
            values += self.values
            return values
        exact = self.values + values.astype(np.float64) * self.group.unit
        self._refuse(np.abs(exact).max(axis=0))
        return exact.astype(np.float32)

    def _largest(self) -> int:
        """Largest |value|, in units."""
        return int(max(self.values.max(initial=0), -self.values.min(initial=0)) / self.group.unit)

    def _refuse(self, magnitudes: np.ndarray, offset: int = 0) -> None:
        """RangeError where |values| (exact float64, from `offset` on) exceed LIMIT units."""
        bound = LIMIT * self.group.unit
        beyond = magnitudes > bound
        if beyond.any():
            name = self.group.tensor_at(offset + int(np.argmax(beyond))).name
            raise RangeError(f"tensor {name!r}: a value would leave {LIMIT} units of 2**{self.group.log2_unit} (|value| <= {bound})")
