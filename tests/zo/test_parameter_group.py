"""Where each tensor of a group lies among its values."""

import numpy as np
import pytest

from zo.group import Group, Tensor

GROUP = Group(3, "body", -20, (Tensor("a", (2, 3)), Tensor("empty", (0, 4)), Tensor("b", ()), Tensor("c", (2,))))


def test_a_row_is_split_into_views_in_order_whatever_comes_before_it() -> None:
    flat = np.arange(18.0).reshape(2, 9)
    found = GROUP.split(flat)
    assert {name: values.shape for name, values in found.items()} == {"a": (2, 2, 3), "empty": (2, 0, 4), "b": (2,), "c": (2, 2)}
    assert found["a"][1].ravel().tolist() == [9, 10, 11, 12, 13, 14]
    assert (found["b"].tolist(), found["c"].tolist()) == ([6, 15], [[7, 8], [16, 17]])
    assert all(np.shares_memory(values, flat) for name, values in found.items() if name != "empty")


@pytest.mark.parametrize(("place", "name"), [(0, "a"), (5, "a"), (6, "b"), (7, "c"), (8, "c")])
def test_every_value_is_of_one_tensor(place: int, name: str) -> None:
    assert GROUP.tensor_at(place).name == name


def test_size_and_unit() -> None:
    assert (GROUP.size, GROUP.unit) == (9, 2.0**-20)
