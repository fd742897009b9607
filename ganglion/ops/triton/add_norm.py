"""`add_norm` by Triton kernels: what they serve. Triton itself is imported at the first call."""

from __future__ import annotations

import torch
from torch import Tensor

MAX_CHANNELS = 8192


def rejects(x: Tensor) -> str | None:
    """Why this backend does not serve the call, None if it does."""
    if x.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return f"it serves float32, float16 and bfloat16, not {x.dtype}"
    if x.shape[2] > MAX_CHANNELS:
        return f"it serves up to {MAX_CHANNELS} channels, not {x.shape[2]}"
    return None


def forward(
    x: Tensor,
    add: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    per_image: bool,
    eps: float,
    dtype: torch.dtype,
    total_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """y, total, mean and rstd, see `ganglion.ops.dispatch`."""
    from . import norm_launch

    return norm_launch.forward(x, add, scale, shift, weight, bias, per_image, eps, dtype, total_dtype)


def backward(
    grad_y: Tensor,
    grad_total: Tensor | None,
    total: Tensor,
    x: Tensor | None,
    scale: Tensor | None,
    weight: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    per_image: bool,
    dtypes: tuple[torch.dtype, torch.dtype | None],
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Gradients of x, add and of what has a value for each channel, see `ganglion.ops.dispatch`."""
    from . import norm_launch

    return norm_launch.backward(grad_y, grad_total, total, x, scale, weight, mean, rstd, per_image, dtypes)
