"""Where what is damaged is kept: beside its file, as NAME.corrupt, NAME.corrupt.1, NAME.corrupt.2 and so on."""

from pathlib import Path

MOST = 1000


def aside(path: Path, most: int = MOST) -> Path:
    """The first of these names that is free. Where none of `most` is: the last, and what is kept there goes."""
    names = [path.with_name(f"{path.name}.corrupt{f'.{number}' if number else ''}") for number in range(most)]
    return next((name for name in names if not name.exists()), names[-1])


def kept(path: Path) -> list[Path]:
    """What is kept of a file."""
    return sorted(path.parent.glob(f"{path.name}.corrupt*"))
