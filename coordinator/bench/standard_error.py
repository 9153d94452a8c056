"""How sure a mean over seeds is."""

import math
import statistics
from collections.abc import Sequence


def standard_error(values: Sequence[float]) -> float:
    """Of their mean; nan of a single one."""
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan


def compared(one: Sequence[float], other: Sequence[float]) -> dict[str, float]:
    """Mean difference, its standard error, and the mean with two of them on top; paired by seed."""
    differences = [a - b for a, b in zip(one, other, strict=True)]
    mean, error = statistics.fmean(differences), standard_error(differences)
    return {"mean": round(mean, 4), "se": round(error, 4), "upper": round(mean + 2 * error, 4)}
