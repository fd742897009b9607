"""`add_norm` by Triton kernels: what they serve. Triton itself is imported at the first call."""

from __future__ import annotations

from typing import Any

import torch

MAX_CHANNELS = 8192


def rejects(x: Any, *, channels: int) -> str | None:
    """Why this backend does not serve the call, None if it does."""
    if x.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return f"it serves float32, float16 and bfloat16, not {x.dtype}"
    if channels > MAX_CHANNELS:
        return f"it serves up to {MAX_CHANNELS} channels, not {channels}"
    return None


def forward(*args: Any) -> Any:
    """y, total and statistics, see `ganglion.ops.dispatch`."""
    from . import norm_launch

    return norm_launch.forward(*args)


def backward(*args: Any) -> Any:
    """Gradients of x, add and of what has a value for each channel, see `ganglion.ops.dispatch`."""
    from . import norm_launch

    return norm_launch.backward(*args)
