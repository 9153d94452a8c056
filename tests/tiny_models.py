"""The tiny models of the benchmarks, under a short name."""

from coordinator.bench.tiny_models import *  # noqa: F403
