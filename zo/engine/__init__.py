"""Forward passes in ONNX Runtime: the only package that imports onnxruntime (DESIGN section 5)."""

from zo.engine.engine import MAX_ROWS, Engine
from zo.engine.prefix import Prefix
from zo.engine.stages import run_model
from zo.engine.walk import EnoughProbed

__all__ = ["MAX_ROWS", "Engine", "EnoughProbed", "Prefix", "run_model"]
