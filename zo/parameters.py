"""Parameters: the trainable tensors on their lattice; `add` is how they change (DESIGN section 2)."""

import hashlib
import math
import mmap
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import numpy as np

from zo import kernel, lattice
from zo.directions import BLOCK
from zo.lattice import LIMIT, RangeError
from zo.terms import STEP_LIMIT, Term, collect

MOST_POSTPONED = 64  # terms


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

    @cached_property
    def size(self) -> int:
        """Count of values of all tensors."""
        return sum(tensor.size for tensor in self.tensors)

    @property
    def unit(self) -> float:
        """The lattice spacing, a power of two."""
        return math.ldexp(1.0, self.log2_unit)

    def split(self, flat: np.ndarray) -> dict[str, np.ndarray]:
        """Views of the tensors in a row of the group's values; leading axes of `flat` are kept."""
        return {t.name: flat[..., start:stop].reshape((*flat.shape[:-1], *t.shape)) for t, (start, stop) in self._spans}

    @cached_property
    def _spans(self) -> list[tuple[Tensor, tuple[int, int]]]:
        """Where each tensor lies in the group's values."""
        stops = list(accumulate(tensor.size for tensor in self.tensors))
        return list(zip(self.tensors, zip([0, *stops], stops, strict=False), strict=True))


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
        self._postponed: tuple[Term, ...] = ()
        self._owed: Counter[int] = Counter()  # units by which what is postponed may move a group's values, at most

    def hold(self, group: Group, pieces: Iterable[np.ndarray]) -> None:
        """Hold one more group. pieces: its values in order, on the lattice, together [size]. RangeError where they are not on it."""
        self.settle()
        values, place = (
            np.frombuffer(mmap.mmap(-1, 4 * group.size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), np.float32),
            0,
        )  # given back once let go
        for piece in pieces:
            lattice.check(f"of group {group.id}", piece, group.log2_unit)
            values[place : place + len(piece)] = piece
            place += len(piece)
        if place != group.size:
            raise ValueError(f"group {group.id} has {group.size} values, not {place}")
        self.groups[group.id], self._flat[group.id] = group, values
        self._views |= group.split(values)
        self._bound[group.id] = self._largest(group.id)

    def release(self, group: int) -> None:
        """Hold a group no more; its memory is free once nobody has a view of it."""
        self.settle()
        for tensor in self.groups.pop(group).tensors:
            del self._views[tensor.name]
        del self._flat[group], self._bound[group]

    def flat(self, group: int) -> np.ndarray:
        """The live values of one group: float32 [size], in the order of the direction stream (a view; not to be written)."""
        self.settle()
        return self._flat[group]

    def load(self, group: int, values: np.ndarray) -> None:
        """Put other values in place of a group's, without moving it: [size], on the lattice. RangeError where they are not."""
        self.settle()
        for name, given in self.groups[group].split(values).items():
            lattice.check(name, given, self.groups[group].log2_unit)
        self._flat[group][:] = values
        self._bound[group] = self._largest(group)

    def tensor(self, name: str) -> np.ndarray:
        """The live values of one tensor: a view, in which changes of `add` are seen, and those of `postpone` after `settle`."""
        self.settle()
        return self._views[name]

    def tensors(self) -> dict[str, np.ndarray]:
        """Live views by tensor name."""
        self.settle()
        return dict(self._views)

    def copy(self) -> "Parameters":
        """An independent copy with the same settings."""
        return Parameters(self.run_key, tuple(self.groups.values()), self.tensors(), threads=self.threads, chunk=self.chunk)

    def add(self, terms: Iterable[Term]) -> None:
        """theta += unit_g * sum over terms of (sum_i steps[i] * z(first_seed + i, g)) for every group g held.

        Terms of groups not held are passed over. All or nothing: RangeError, naming the tensor and the bound, if a
        value would leave LIMIT units, and then nothing has changed.
        """
        terms = tuple(terms)
        if self._postponed and sum(_total(term) for term in terms) > STEP_LIMIT // 2:
            self.settle()  # together they might not be exact where each is, nor each where together they are
        terms = (*self._postponed, *terms)
        alike: dict[tuple[bool, ...], tuple[np.ndarray, np.ndarray]] = {}  # most groups are in the same terms as others
        work = []
        for group in {g for term in terms for g in term.groups} & self.groups.keys():
            touched = tuple(group in term.groups for term in terms)
            if touched not in alike:
                alike[touched] = collect(terms, group)
            seeds, steps = alike[touched]
            if seeds.size:
                work.append((group, seeds, steps, self._check_range(group, seeds, steps)))
        self._postponed, self._owed = (), Counter()
        for group, seeds, steps, total in work:
            self._add_group(group, seeds, steps)
            self._bound[group] += total

    def postpone(self, terms: Iterable[Term]) -> None:
        """What `add` does, together with the next `add` in one pass over the weights, or when values are next asked for here.

        Whoever holds a view calls `settle` before looking at it. RangeError as `add`.
        """
        terms = tuple(terms)
        owed = self._owed.copy()
        for term in terms:
            total = _total(term)
            owed.update({group: total for group in term.groups if group in self.groups})
        if len(self._postponed) + len(terms) > MOST_POSTPONED or any(self._bound[g] + most > LIMIT for g, most in owed.items()):
            self.add(terms)
        else:
            self._postponed, self._owed = (*self._postponed, *terms), owed

    def settle(self) -> None:
        """Do what was postponed."""
        if self._postponed:
            self.add(())

    def branches(self, terms_p: Sequence[Iterable[Term]], out: Mapping[str, np.ndarray]) -> None:
        """Write P perturbed copies, leaving theta alone: branch p becomes what `add(terms_p[p])` would give, bit for bit.

        out: by tensor name, float32 [P, *shape]; groups without a tensor in `out` are passed over.
        """
        self.settle()
        perturbations = [tuple(terms) for terms in terms_p]
        groups = [group for group in self.groups.values() if any(tensor.name in out for tensor in group.tensors)]
        alike: dict[tuple[bool, ...], tuple[np.ndarray, np.ndarray]] = {}  # as in `add`
        branched = []
        for group in groups:
            touched = tuple(group.id in term.groups for terms in perturbations for term in terms)
            if touched not in alike:
                alike[touched] = _steps_by_branch(perturbations, group.id)
            branched.append(group.split(self._branched(group, *alike[touched])))  # all of them before any is written
        for pieces in branched:
            for name in pieces.keys() & out.keys():
                out[name][...] = pieces[name]

    def probes(self, groups: Sequence[int], first_seed: int, count: int, steps: Sequence[int], out: Mapping[str, np.ndarray]) -> None:
        """Write copies perturbed by each of `steps` units along each of `count` consecutive seeds, leaving theta alone.

        out: by tensor name, float32 [count * len(steps), *shape], all steps of a direction together. The same bits as `branches`
        gives for those terms, without a term for each; RangeError as there.
        """
        self.settle()
        seeds = np.uint64(first_seed) + np.arange(count, dtype=np.uint64)
        each = np.kron(np.eye(count, dtype=np.int64), np.array(steps, np.int64)[:, None])
        for group in groups:
            for name, piece in self.groups[group].split(self._branched(self.groups[group], seeds, each)).items():
                out[name][...] = piece

    def group_digest(self, group: int) -> bytes:
        """BLAKE2b-256 over the group's little-endian float32 bytes."""
        return hashlib.blake2b(self.flat(group).astype("<f4", copy=False).data, digest_size=32).digest()

    def digest(self, among: Collection[int] = ()) -> bytes:
        """BLAKE2b-256 over the digests of these groups, or of all that are held, in order of id."""
        return digest_of({group: self.group_digest(group) for group in among or self.groups})

    def _branched(self, group: Group, seeds: np.ndarray, steps: np.ndarray) -> np.ndarray:
        """The group's values in every branch: float32 [P, size]; RangeError where one leaves the exact range."""
        values = kernel.combine(self.run_key, group.id, seeds, steps, 0, group.size)
        if self._bound[group.id] + kernel.largest_sum(steps) <= LIMIT:
            values *= np.float32(group.unit)
            values += self._flat[group.id]
            return values
        exact = self._flat[group.id] + values.astype(np.float64) * group.unit
        self._refuse(group, np.abs(exact).max(axis=0))
        return exact.astype(np.float32)

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

    def _check_range(self, group: int, seeds: np.ndarray, steps: np.ndarray) -> int:
        """Sum of |steps|. RangeError if the addition would leave the exact range; looks at the values only when it might."""
        total = kernel.largest_sum(steps[None])
        kernel.exact_type(total)
        if self._bound[group] + total <= LIMIT:
            return total
        self._bound[group] = self._largest(group)
        if self._bound[group] + total <= LIMIT:
            return total
        flat, unit, size = self._flat[group], self.groups[group].unit, self.groups[group].size
        for start in range(0, size, self.chunk):
            stop = min(start + self.chunk, size)
            delta = kernel.combine(self.run_key, group, seeds, steps[None], start, stop)[0]
            self._refuse(self.groups[group], np.abs(flat[start:stop] + delta.astype(np.float64) * unit), offset=start)
        return total

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


def digest_of(groups: Mapping[int, bytes]) -> bytes:
    """The digest of parameters whose groups have these."""
    return hashlib.blake2b(b"".join(groups[group] for group in sorted(groups)), digest_size=32).digest()


def _total(term: Term) -> int:
    """Sum of |steps|; rounded beyond 2**53."""
    return int(np.abs(term.steps).sum(dtype=np.float64))


def _steps_by_branch(perturbations: Sequence[tuple[Term, ...]], group: int) -> tuple[np.ndarray, np.ndarray]:
    """What each branch adds to one group: sorted seeds (uint64 [n]) and steps (int64 [P, n])."""
    each = [collect(terms, group) for terms in perturbations]
    seeds = np.unique(np.concatenate([own for own, _ in each]))
    steps = np.zeros((len(each), seeds.size), np.int64)
    for row, (own, values) in zip(steps, each, strict=True):
        row[np.searchsorted(seeds, own)] = values
    return seeds, steps
