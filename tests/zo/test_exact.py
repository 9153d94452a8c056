"""Groups that are not held: base and fold, streamed, are the bits that `Parameters.add` gives."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from zo import lattice
from zo.directions import BLOCK
from zo.errors import BundleError
from zo.exact import hashed, new_hash, stream
from zo.group import Group, Tensor
from zo.initial import Initial
from zo.ledger import fold
from zo.parameters import Parameters
from zo.terms import Term

RUN_KEY = 11
GROUPS = (
    Group(0, "body", -20, (Tensor("a", (40, 33)), Tensor("b", (7,)))),
    Group(1, "body", -18, (Tensor("c", (3,)), Tensor("d", (64, 16)), Tensor("e", (1,)))),
)


@pytest.fixture(scope="module")
def tensors() -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    shapes = {tensor.name: (tensor.shape, group.log2_unit) for group in GROUPS for tensor in group.tensors}
    return {name: lattice.snap(generator.standard_normal(shape) / 8, unit) for name, (shape, unit) in shapes.items()}


@pytest.fixture(scope="module")
def initial(tensors: dict[str, np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Initial:
    path = tmp_path_factory.mktemp("initial") / "trainable.safetensors"
    save_file(tensors, path)
    return Initial(path)


term = st.builds(
    lambda groups, seed, steps: Term(groups, seed, np.array(steps, np.int64)),
    st.sampled_from([(0,), (1,), (0, 1)]),
    st.integers(0, 40),
    st.lists(st.integers(-3000, 3000), min_size=1, max_size=30),
)


@settings(max_examples=60, deadline=None)
@given(terms=st.lists(term, max_size=6), blocks=st.integers(1, 8))
def test_streamed_values_are_those_of_parameters(terms: list[Term], blocks: int, tensors: dict[str, np.ndarray], initial: Initial) -> None:
    parameters = Parameters(RUN_KEY, GROUPS, tensors)
    for each in terms:
        parameters.add([each])
    for group in GROUPS:
        found = new_hash()
        pieces = [piece.copy() for piece in hashed(stream(RUN_KEY, group, initial, fold(terms), blocks * BLOCK), found)]
        np.testing.assert_array_equal(np.concatenate(pieces), parameters.flat(group.id))
        assert found.digest() == parameters.group_digest(group.id)


def test_a_group_comes_and_goes_while_the_others_are_changed(tensors: dict[str, np.ndarray], initial: Initial) -> None:
    whole, part = Parameters(RUN_KEY, GROUPS, tensors), Parameters(RUN_KEY, GROUPS[:1], tensors)
    first, second = (Term((0, 1), seed, np.array([5, -2, 8])) for seed in (3, 90))
    for parameters in (whole, part):
        parameters.postpone([first])
    part.hold(GROUPS[1], stream(RUN_KEY, GROUPS[1], initial, [first]))
    for parameters in (whole, part):
        parameters.postpone([second])
    assert part.digest() == whole.digest()
    part.release(1)
    assert part.tensors().keys() == {"a", "b"}
    assert part.digest() == whole.digest([0])
    part.add([first])
    assert part.digest() != whole.digest([0])


def test_values_off_the_lattice_or_too_few_are_not_held(tensors: dict[str, np.ndarray]) -> None:
    parameters, size = Parameters(RUN_KEY, GROUPS[:1], tensors), GROUPS[1].size
    with pytest.raises(lattice.RangeError, match="group 1"):
        parameters.hold(GROUPS[1], [np.full(size, 2.0**-40, np.float32)])
    with pytest.raises(ValueError, match=f"{size} values, not {size - 1}"):
        parameters.hold(GROUPS[1], [np.zeros(size - 1, np.float32)])
    assert parameters.groups.keys() == {0}


def test_tensors_are_read_as_they_are_asked_for(tensors: dict[str, np.ndarray], initial: Initial) -> None:
    assert initial.keys() == tensors.keys()
    assert all(np.array_equal(initial[name], values) for name, values in tensors.items())
    out = np.empty(1300, np.float32)
    initial.read(GROUPS[0], 20, out)
    np.testing.assert_array_equal(out, np.concatenate([np.ravel(tensors["a"]), tensors["b"]])[20:1320])


def _other_kind(path: Path, tensors: dict[str, np.ndarray]) -> None:
    save_file(tensors | {"a": tensors["a"].astype(np.float64)}, path)


def _cut(path: Path, tensors: dict[str, np.ndarray]) -> None:
    save_file(tensors, path)
    path.write_bytes(path.read_bytes()[:-8])


@pytest.mark.parametrize("write", [_other_kind, _cut])
def test_another_file_is_refused(write: Callable[..., None], tensors: dict[str, np.ndarray], tmp_path: Path) -> None:
    write(tmp_path / "x.safetensors", tensors)
    with pytest.raises(BundleError, match="cannot be read"):
        Initial(tmp_path / "x.safetensors")
