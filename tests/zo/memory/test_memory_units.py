"""Amounts of memory as people write them."""

import pytest

from zo.memory.units import parse, told


@pytest.mark.parametrize(
    ("text", "size"),
    [("800MB", 800e6), ("1GiB", 2**30), ("1.5 g", 1.5e9), ("2e8", 2e8), ("64kB", 64e3), ("3MiB", 3 * 2**20), ("25%", 250.0)],
)
def test_amounts_are_read(text: str, size: float) -> None:
    assert parse(text, 1000.0) == size


@pytest.mark.parametrize("text", ["", "much", "-1GB", "0", "1TBB", "101%", "0%", "1..2GB", "GB"])
def test_what_is_no_amount_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no amount of memory"):
        parse(text, 1000.0)


def test_a_share_needs_a_whole() -> None:
    with pytest.raises(ValueError, match="no amount"):
        parse("25%")


def test_amounts_are_told() -> None:
    assert (told(1.234e9), told(5e8), told(1.5e6)) == ("1.23 GB", "500 MB", "1.5 MB")
