"""Parameters: the trainable tensors on their lattice; `add` is how they change (DESIGN section 2)."""

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from zo import kernel, lattice
from zo.directions import BLOCK
from zo.lattice import LIMIT, RangeError
from zo.terms import Term, collect


@dataclass(frozen=True)
class Tensor:
    """A trainable tensor: its name in the graphs and its shape (without the branch axis)."""

    name: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Count of values."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Group:
    """A parameter group: the smallest set of tensors that is perturbed alone, on one lattice.

    id: 0 <= id < 2**32. kind: "body" or "head", the class that shares probe size and rate. log2_unit: exponent of
    the unit. tensors: in the order of the direction stream.
    """

    id: int
    kind: str
    log2_unit: int
    tensors: tuple[Tensor, ...]

    @property
    def size(self) -> int:
        """Count of values of all tensors."""
        return sum(tensor.size for tensor in self.tensors)

    @property
    def unit(self) -> float:
        """The lattice spacing, a power of two."""
        return math.ldexp(1.0, self.log2_unit)

    def split(self, flat: np.ndarray) -> dict[str, np.ndarray]:
        """Views of the tensors in a row of the group's values; leading axes of `flat` are kept."""
        stops = np.cumsum([tensor.size for tensor in self.tensors])
        pieces = np.split(flat, stops[:-1], axis=-1)
        return {t.name: piece.reshape((*flat.shape[:-1], *t.shape)) for t, piece in zip(self.tensors, pieces, strict=True)}


class Parameters:
    """Values of some or all groups of a run; a subset behaves as the restriction of the whole.

    tensors: values by tensor name (any float type, already on the lattice: see `lattice.snap`); they are copied.
    threads: workers for large groups. chunk: values per pass, a multiple of BLOCK. Neither changes a bit.
    Raises RangeError where a value is off the lattice. Not safe for concurrent calls.
    """

    def __init__(
        self, run_key: int, groups: Sequence[Group], tensors: Mapping[str, np.ndarray], *, threads: int = 1, chunk: int = kernel.CHUNK
    ) -> None:
        if chunk <= 0 or chunk % BLOCK:
            raise ValueError(f"chunk must be a positive multiple of {BLOCK}, not {chunk}")
        self.run_key = run_key
        self.groups = {group.id: group for group in groups}
        self.threads, self.chunk = threads, chunk
        self._flat = {g.id: np.empty(g.size, np.float32) for g in groups}
        self._views: dict[str, np.ndarray] = {}
        for group in groups:
            self._views |= group.split(self._flat[group.id])
            for tensor in group.tensors:
                given = np.asarray(tensors[tensor.name])
                if given.shape != tensor.shape:
                    raise ValueError(f"tensor {tensor.name!r} has shape {given.shape}, not {tensor.shape}")
                lattice.check(tensor.name, given, group.log2_unit)
                self._views[tensor.name][...] = given
        self._bound = {group.id: self._largest(group.id) for group in groups}

    def flat(self, group: int) -> np.ndarray:
        """The live values of one group: float32 [size], in the order of the direction stream (a view; not to be written)."""
        return self._flat[group]

    def load(self, group: int, values: np.ndarray) -> None:
        """Put other values in place of a group's, without moving it: [size], on the lattice. RangeError where they are not."""
        for name, given in self.groups[group].split(values).items():
            lattice.check(name, given, self.groups[group].log2_unit)
        self._flat[group][:] = values
        self._bound[group] = self._largest(group)

    def tensor(self, name: str) -> np.ndarray:
        """The live values of one tensor (a view: changes of `add` are seen in it)."""
        return self._views[name]

    def tensors(self) -> dict[str, np.ndarray]:
        """Live views by tensor name."""
        return dict(self._views)

    def copy(self) -> "Parameters":
        """An independent copy with the same settings."""
        return Parameters(self.run_key, tuple(self.groups.values()), self._views, threads=self.threads, chunk=self.chunk)

    def add(self, terms: Iterable[Term]) -> None:
        """theta += unit_g * sum over terms of (sum_i steps[i] * z(first_seed + i, g)) for every group g held.

        Terms of groups not held are passed over. All or nothing: RangeError, naming the tensor and the bound, if a
        value would leave LIMIT units, and then nothing has changed.
        """
        terms = tuple(terms)
        work = {}
        for group in {g for term in terms for g in term.groups} & self.groups.keys():
            seeds, steps = collect(terms, group)
            if seeds.size:
                work[group] = (seeds, steps)
                self._check_range(group, seeds, steps)
        for group, (seeds, steps) in work.items():
            self._add_group(group, seeds, steps)
            self._bound[group] += int(np.abs(steps).sum())

    def branches(self, terms_p: Sequence[Iterable[Term]], out: Mapping[str, np.ndarray]) -> None:
        """Write P perturbed copies, leaving theta alone: branch p becomes what `add(terms_p[p])` would give, bit for bit.

        out: by tensor name, float32 [P, *shape]; groups without a tensor in `out` are passed over.
        """
        perturbations = [tuple(terms) for terms in terms_p]
        groups = [group for group in self.groups.values() if any(tensor.name in out for tensor in group.tensors)]
        branched = [(group, self._branched(group, perturbations)) for group in groups]  # all of them before any is written
        for group, values in branched:
            for name, piece in group.split(values).items():
                if name in out:
                    out[name][...] = piece

    def group_digest(self, group: int) -> bytes:
        """BLAKE2b-256 over the group's little-endian float32 bytes."""
        return hashlib.blake2b(self._flat[group].astype("<f4", copy=False).data, digest_size=32).digest()

    def digest(self) -> bytes:
        """BLAKE2b-256 over the digests of all groups held, in order of id."""
        return hashlib.blake2b(b"".join(self.group_digest(g) for g in sorted(self.groups)), digest_size=32).digest()

    def _branched(self, group: Group, terms_p: Sequence[tuple[Term, ...]]) -> np.ndarray:
        """The group's values in every branch: [P, size]; RangeError where one leaves the exact range."""
        per_branch = [collect(terms, group.id) for terms in terms_p]
        seeds = np.unique(np.concatenate([seeds for seeds, _ in per_branch]))
        steps = np.zeros((len(terms_p), seeds.size), np.int64)
        for row, (own, values) in zip(steps, per_branch, strict=True):
            row[np.searchsorted(seeds, own)] = values
        delta = kernel.combine(self.run_key, group.id, seeds, steps, 0, group.size)
        wide: type = np.float32 if self._bound[group.id] + int(np.abs(steps).sum(axis=1).max(initial=0)) <= LIMIT else np.float64
        values = self._flat[group.id].astype(wide) + delta.astype(wide) * group.unit
        if wide is np.float64:
            self._refuse(group, np.abs(values).max(axis=0))
        return values.astype(np.float32, copy=False)

    def _add_group(self, group: int, seeds: np.ndarray, steps: np.ndarray) -> None:
        values, unit = self._flat[group], self.groups[group].unit
        span = max(self.chunk, -(-len(values) // self.threads // BLOCK) * BLOCK)
        starts = range(0, len(values), span)

        def work(start: int) -> None:
            part = values[start : start + span]
            kernel.add_in_place(self.run_key, group, seeds, steps, part, start, unit, self.chunk)

        if len(starts) == 1:
            work(0)
            return
        with ThreadPoolExecutor(self.threads) as pool:
            list(pool.map(work, starts))

    def _largest(self, group: int) -> int:
        """Largest |value| of the group, in units."""
        values = self._flat[group]
        return int(max(values.max(initial=0), -values.min(initial=0)) / self.groups[group].unit)

    def _check_range(self, group: int, seeds: np.ndarray, steps: np.ndarray) -> None:
        """RangeError if the addition would leave the exact range; looks at the values only when it might."""
        total = int(np.abs(steps).sum(dtype=np.float64))
        kernel.exact_type(total)
        if self._bound[group] + total <= LIMIT:
            return
        self._bound[group] = self._largest(group)
        if self._bound[group] + total <= LIMIT:
            return
        flat, unit, size = self._flat[group], self.groups[group].unit, self.groups[group].size
        for start in range(0, size, self.chunk):
            stop = min(start + self.chunk, size)
            delta = kernel.combine(self.run_key, group, seeds, steps[None], start, stop)[0]
            self._refuse(self.groups[group], np.abs(flat[start:stop] + delta.astype(np.float64) * unit), offset=start)

    @staticmethod
    def _refuse(group: Group, magnitudes: np.ndarray, offset: int = 0) -> None:
        """RangeError where |values| (exact float64, from `offset` on) exceed LIMIT units."""
        bound = LIMIT * group.unit
        beyond = magnitudes > bound
        if not beyond.any():
            return
        place, stop = offset + int(np.argmax(beyond)), 0
        for tensor in group.tensors:
            stop += tensor.size
            if place < stop:
                raise RangeError(f"tensor {tensor.name!r}: a value would leave {LIMIT} units of 2**{group.log2_unit} (|value| <= {bound})")
