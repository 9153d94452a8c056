"""What training takes in memory: predicted from shapes, fitted to a device by a few measurements (DESIGN section 8, docs/memory.md)."""

from zo.memory.engine import Need, need
from zo.memory.shapes import PUBLISHED, ModelShape

__all__ = ["PUBLISHED", "ModelShape", "Need", "need"]
