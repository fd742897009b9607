"""Numbers as text, as small as the maps' precision of 1e-5 allows. numbers.js reads them.

What enters a map as it is, B and C, is float32. Of large networks, whose maps are means over hundreds of channels, the
step sizes' projections have 20 bits and their weights 16.
"""

from __future__ import annotations

import base64
from typing import Any

import numpy as np

#: Values from -SCALE to SCALE: 16 or 20 bits.
SCALE_16, SCALE_20 = 2**15 - 1, 2**19 - 1


def text(values: np.ndarray | bytes) -> str:
    """The bytes of an array, or bytes, in base64."""
    return base64.b64encode(values if isinstance(values, bytes) else values.tobytes()).decode("ascii")


def floats(values: np.ndarray) -> dict[str, Any]:
    """An array as float32."""
    return {"shape": list(values.shape), "float32": text(values.astype("<f4"))}


def fixed(values: np.ndarray, scale: int) -> dict[str, Any]:
    """An array (K, M, P) of fixed-point numbers, each (k, p) relative to its own largest value.

    high: all numbers of 16 bits, or the upper 16 bits of 20. low, of 20 bits: the lower 4, two numbers to a byte, the
    first in the lower half. float16 has as many bits, and 30 times the error of the largest values.
    """
    values = values.astype(np.float64)
    largest = np.abs(values).max(axis=1, keepdims=True, initial=0).astype("<f4")
    safe = np.where(largest > 0, largest, 1).astype(np.float64)
    whole = np.rint(np.clip(values / safe, -1, 1) * scale).astype(np.int64).ravel() + scale
    packed = {"shape": list(values.shape), "scale": scale, "largest": text(largest)}
    if scale == SCALE_16:
        return packed | {"high": text(whole.astype("<u2"))}
    low = (whole & 15).astype(np.uint8)
    low = np.concatenate([low, np.zeros(len(low) % 2, np.uint8)]).reshape(-1, 2)
    return packed | {"high": text((whole >> 4).astype("<u2")), "low": text(low[:, 0] | low[:, 1] << 4)}
