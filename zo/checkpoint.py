"""Checkpoints: the parameters at one entry, stated relative to the bundle, so that the entries before it are not needed."""

from dataclasses import dataclass

import numpy as np

from zo.parameters import Parameters
from zo.terms import Term

UNSTATED = bytes(32)  # in place of a digest


@dataclass(frozen=True)
class GroupValues:
    """All values of one group, as little-endian float32 in the order of its tensors."""

    group: int
    values: bytes


@dataclass(frozen=True)
class Checkpoint:
    """The parameters at an entry: those of the bundle, `values` in place of some groups', `terms` added to the others'.

    genesis, head: identity of the ledger before its first entry, and at this one. digest: of the parameters; UNSTATED where a device
    that holds only some of them kept it for itself.
    """

    genesis: bytes
    entry: int
    head: bytes
    digest: bytes
    terms: tuple[Term, ...] = ()
    values: tuple[GroupValues, ...] = ()


def values_of(parameters: Parameters, groups: set[int]) -> tuple[GroupValues, ...]:
    """The present values of some groups."""
    return tuple(GroupValues(group, parameters.flat(group).astype("<f4", copy=False).tobytes()) for group in sorted(groups))


def write(checkpoint: Checkpoint, parameters: Parameters) -> None:
    """Bring parameters that are those of the bundle to a checkpoint.

    ValueError (RangeError among them) where it does not fit them; they may then be half changed. The digest is not compared.
    """
    for given in checkpoint.values:
        if given.group in parameters.groups:
            if len(given.values) != 4 * parameters.groups[given.group].size:
                raise ValueError(f"the checkpoint's values of group {given.group} are of another length")
            parameters.load(given.group, np.frombuffer(given.values, "<f4"))
    parameters.add(checkpoint.terms)


def signs(terms: tuple[Term, ...], sizes: dict[int, int]) -> int:
    """How many signs of directions have to be made to add these terms: what replaying them costs."""
    return sum(term.steps.size * sum(sizes.get(group, 0) for group in term.groups) for term in terms)
