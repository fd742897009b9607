"""Bias and activation after a matrix product, by the native library."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from .library import ACTIVATIONS, ELEMENTS, Pointwise, address, loaded, threads


def activate(x: Tensor, bias: Tensor | None, activation: str, dtype: torch.dtype) -> Tensor:
    """activation(x + bias), in x's memory where the result has its dtype.

    x: (rows, C), contiguous, float32, bfloat16 or float16, as is `dtype`, the result's; bias: (C,) of any floating
    dtype. activation: one of `library.ACTIVATIONS`. Inside, everything is float32.

    Raises RuntimeError if the backend is unavailable. The rest is the caller's to check.
    """
    library, isa = loaded()
    bias = None if bias is None else bias.float().contiguous()
    y = x if x.dtype == dtype else torch.empty_like(x, dtype=dtype)
    rows, channels = x.shape
    call = Pointwise(
        rows=rows,
        channels=channels,
        activation=ACTIVATIONS[activation],
        x_type=ELEMENTS[x.dtype],
        y_type=ELEMENTS[dtype],
        threads=threads(library),
        x=x.data_ptr(),
        bias=address(bias),
        y=y.data_ptr(),
    )
    library.ganglion_pointwise_forward(isa, ctypes.byref(call))
    return y
