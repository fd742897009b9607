"""GPU backend: Triton kernels, compiled at first use for CUDA, ROCm and XPU devices.

Under TRITON_INTERPRET=1 (set before this is imported) Triton interprets the kernels on the CPU, so that they can be
tested and debugged without a GPU; CPU tensors are served then, very slowly.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Sequence

import torch
from torch import Tensor

_INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")

DEVICES = ("cuda", "xpu", "cpu") if _INTERPRETED else ("cuda", "xpu")

MAX_STATE = 16
MAX_RANK = 128
MAX_SIDE = 32768


@functools.cache
def unavailable() -> str | None:
    """Why this backend cannot run here, None if it can."""
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    if not (_INTERPRETED or torch.cuda.is_available() or torch.xpu.is_available()):
        return "no GPU: torch finds neither a CUDA or ROCm nor an XPU device"
    return None


def rejects(x: Tensor, d_state: int, dt_rank: int) -> str | None:
    """Why this backend does not serve the call, None if it does."""
    if x.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return f"it serves float32, float16 and bfloat16, not {x.dtype}"
    if d_state > MAX_STATE:
        return f"it serves d_state up to {MAX_STATE}, not {d_state}"
    if dt_rank > MAX_RANK:
        return f"it serves dt_rank up to {MAX_RANK}, not {dt_rank}"
    if max(x.shape[1:3]) > MAX_SIDE:
        return f"it serves images of up to {MAX_SIDE} pixels a side, not {x.shape[1]} x {x.shape[2]}"
    if x.device.type == "cuda" and torch.version.hip is None:
        capability = torch.cuda.get_device_capability(x.device)
        if capability < (8, 0):
            return f"it needs compute capability 8.0, {x.device} has {capability[0]}.{capability[1]}"
    return None


def forward(
    x: Tensor,
    proj: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor | None,
    routes: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """y and carry, see `ganglion.ops.backends`."""
    from . import launch

    return launch.forward(x, proj, dt_weight, dt_bias, A, D, routes)


def backward(
    grad_y: Tensor,
    x: Tensor,
    proj: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor | None,
    carry: Tensor,
    routes: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """The gradients, see `ganglion.ops.backends`."""
    from . import launch

    return launch.backward(grad_y, x, proj, dt_weight, dt_bias, A, D, carry, routes)
