"""The trainable tensors of a run on their lattice; `add` is how they change (DESIGN section 2)."""

import hashlib
import mmap
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np

from zo import kernel, lattice
from zo.directions import BLOCK
from zo.group import Group
from zo.held import HeldGroup
from zo.terms import STEP_LIMIT, Term, collect

MOST_POSTPONED = 64  # terms


class Parameters:
    """Values of some or all groups of a run; a subset behaves as the restriction of the whole.

    tensors: values by tensor name (any float type, already on the lattice: see `lattice.snap`); they are copied.
    threads: workers for large groups. chunk: values per pass, a multiple of BLOCK. Neither changes a bit.
    Raises RangeError where a value is off the lattice. Not safe for concurrent calls.
    """

    HELD = HeldGroup

    def __init__(
        self, run_key: int, groups: Sequence[Group], tensors: Mapping[str, np.ndarray], *, threads: int = 1, chunk: int = kernel.CHUNK
    ) -> None:
        if chunk <= 0 or chunk % BLOCK:
            raise ValueError(f"chunk must be a positive multiple of {BLOCK}, not {chunk}")
        self.run_key, self.threads, self.chunk = run_key, threads, chunk
        self.groups: dict[int, Group] = {}
        self._held: dict[int, HeldGroup] = {}
        self._views: dict[str, np.ndarray] = {}
        for group in groups:
            values = np.empty(group.size, np.float32)
            for name, view in group.split(values).items():
                given = np.asarray(tensors[name])
                if given.shape != view.shape:
                    raise ValueError(f"tensor {name!r} has shape {given.shape}, not {view.shape}")
                lattice.check(name, given, group.log2_unit)
                view[...] = given
            self._take_in(group, values)
        self._postponed: tuple[Term, ...] = ()
        self._owed: Counter[int] = Counter()  # units by which what is postponed may move a group's values, at most

    def hold(self, group: Group, pieces: Iterable[np.ndarray]) -> None:
        """Hold one more group. pieces: its values in order, on the lattice, together [size]. RangeError where they are not on it."""
        self.settle()
        own = mmap.mmap(-1, 4 * group.size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # given back once let go
        values, place = np.frombuffer(own, np.float32), 0
        for piece in pieces:
            lattice.check(f"of group {group.id}", piece, group.log2_unit)
            values[place : place + len(piece)] = piece
            place += len(piece)
        if place != group.size:
            raise ValueError(f"group {group.id} has {group.size} values, not {place}")
        self._take_in(group, values)

    def release(self, group: int) -> None:
        """Hold a group no more; its memory is free once nobody has a view of it."""
        self.settle()
        for tensor in self.groups.pop(group).tensors:
            del self._views[tensor.name]
        del self._held[group]

    def flat(self, group: int) -> np.ndarray:
        """The live values of one group: float32 [size], in the order of the direction stream (a view; not to be written)."""
        self.settle()
        return self._held[group].values

    def load(self, group: int, values: np.ndarray) -> None:
        """Put other values in place of a group's, without moving it: [size], on the lattice. RangeError where they are not."""
        self.settle()
        self._held[group].load(values)

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
                self._held[group].check(seeds, steps)  # all of them before any is changed
                work.append((self._held[group], seeds, steps))
        self._postponed, self._owed = (), Counter()
        for held, seeds, steps in work:
            held.add(seeds, steps)

    def postpone(self, terms: Iterable[Term]) -> None:
        """What `add` does, together with the next `add` in one pass over the weights, or when values are next asked for here.

        Whoever holds a view calls `settle` before looking at it. RangeError as `add`.
        """
        terms = tuple(terms)
        owed = self._owed.copy()
        for term in terms:
            total = _total(term)
            owed.update({group: total for group in term.groups if group in self.groups})
        if len(self._postponed) + len(terms) > MOST_POSTPONED or not all(self._held[g].bears(most) for g, most in owed.items()):
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
        alike: dict[tuple[bool, ...], tuple[np.ndarray, np.ndarray]] = {}  # as in `add`
        branched = []
        for group in self.groups.values():
            if not any(tensor.name in out for tensor in group.tensors):
                continue
            touched = tuple(group.id in term.groups for terms in perturbations for term in terms)
            if touched not in alike:
                alike[touched] = _steps_by_branch(perturbations, group.id)
            branched.append(group.split(self._held[group.id].branched(*alike[touched])))  # all of them before any is written
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
            for name, piece in self.groups[group].split(self._held[group].branched(seeds, each)).items():
                out[name][...] = piece

    def group_digest(self, group: int) -> bytes:
        """BLAKE2b-256 over the group's little-endian float32 bytes."""
        return hashlib.blake2b(self.flat(group).astype("<f4", copy=False).data, digest_size=32).digest()

    def digest(self, among: Collection[int] = ()) -> bytes:
        """BLAKE2b-256 over the digests of these groups, or of all that are held, in order of id."""
        return digest_of({group: self.group_digest(group) for group in among or self.groups})

    def _take_in(self, group: Group, values: np.ndarray) -> None:
        self.groups[group.id] = group
        self._held[group.id] = self.HELD(self.run_key, group, values, self.threads, self.chunk)
        self._views |= group.split(values)


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
