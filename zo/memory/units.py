"""Counts of bytes as people write them."""

import re

FLOAT = 4  # bytes
FACTORS = {"": 1, "k": 1e3, "m": 1e6, "g": 1e9, "ki": 2.0**10, "mi": 2.0**20, "gi": 2.0**30}


def parse(text: str, total: float | None = None) -> float:
    """Bytes of "800MB", "1GiB", "2e8" or, where there is a total, "25%" of it. ValueError where it is none of these, or not above 0."""
    found = re.fullmatch(r"\s*([0-9.]+(?:e[0-9]+)?)\s*(%|(?:([kmg]i?)?b?))\s*", text.lower())
    try:
        count = float(found[1]) if found else 0.0
    except ValueError:
        count = 0.0
    if not found or count <= 0 or (found[2] == "%" and (total is None or count > 100)):
        raise ValueError(f"{text!r} is no amount of memory; write it as 800MB, 1GiB{' or 25%' if total else ''}")
    return count / 100 * float(total or 0) if found[2] == "%" else count * FACTORS[found[3] or ""]


def told(size: float) -> str:
    """For a person, in MB or GB."""
    return f"{size / 1e9:.2f} GB" if abs(size) >= 1e9 else f"{size / 1e6:.1f} MB" if abs(size) < 1e7 else f"{size / 1e6:.0f} MB"
