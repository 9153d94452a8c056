"""Weights in few bits: symmetric around zero, with float32 scales, in the layouts that ONNX Runtime's operators take."""

import numpy as np

from zo.manifest import Precision

BLOCK = 32  # values along `in` that share a scale in w8 and w4
BITS: dict[Precision, int] = {"w8": 8, "w4": 4}  # of the weight-only precisions


def along(values: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """int8 codes and one scale for all values along `axis` (kept, of length 1): values ~ codes * scale."""
    scale = np.maximum(np.abs(values).max(axis=axis, keepdims=True), 1e-12).astype(np.float32) / np.float32(127)
    return np.rint(values / scale).astype(np.int8), scale


def blocks(weight: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """What MatMulNBits takes for x @ weight, weight [in, out]: uint8 [out, blocks, BLOCK * bits / 8], scales [out * blocks].

    A code c stands for (c - 2**(bits - 1)) * scale. Blocks run along `in`, the last one filled up with zeros. Of each, the
    value furthest from zero gets code 0 exactly (its scale carries the sign), so that every code can occur. 4-bit codes
    lie two to the byte, the first in the lower half.
    """
    inner, outer = weight.shape
    count, half = -(-inner // BLOCK), 1 << (bits - 1)
    values = np.zeros((outer, count * BLOCK), np.float32)
    values[:, :inner] = weight.T
    values = values.reshape(outer, count, BLOCK)
    furthest = np.take_along_axis(values, np.abs(values).argmax(axis=2, keepdims=True), axis=2)
    scales = furthest / np.float32(-half)
    codes = np.rint(values / np.where(scales == 0, np.float32(1), scales)) + half
    packed = np.clip(codes, 0, 2 * half - 1).astype(np.uint8)
    if bits == 4:
        packed = packed[..., ::2] | packed[..., 1::2] << 4
    return packed, scales.reshape(-1)
