"""`scan2d` by Triton kernels: what they serve. Triton itself is imported at the first call."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

#: Parameters may have any dtype, and A may be log(-A): see `ganglion.ops.dispatch`.
PREPARES = True
MAX_STATE = 16
MAX_RANK = 128
MAX_SIDE = 32768


def rejects(x: Tensor, *, d_state: int, dt_rank: int) -> str | None:
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
    *,
    log_A: bool = False,
) -> tuple[Tensor, Tensor]:
    """y and carry, see `ganglion.ops.dispatch`."""
    from . import launch

    return launch.forward(x, proj, dt_weight, dt_bias, A, D, routes, log_A=log_A)


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
    *,
    log_A: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None]:
    """The gradients, see `ganglion.ops.dispatch`."""
    from . import launch

    return launch.backward(grad_y, x, proj, dt_weight, dt_bias, A, D, carry, routes, log_A=log_A)
