"""`selective_scan` by Triton kernels: what they serve. Triton itself is imported at the first call."""

from __future__ import annotations

import torch
from torch import Tensor


def rejects(u: Tensor, *, d_state: int) -> str | None:
    """Why this backend does not serve the call, None if it does."""
    if u.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return f"it serves float32, float16 and bfloat16, not {u.dtype}"
    if u.device.type == "cuda" and torch.version.hip is None:
        capability = torch.cuda.get_device_capability(u.device)
        if capability < (8, 0):
            return f"it needs compute capability 8.0, {u.device} has {capability[0]}.{capability[1]}"
    return None


def forward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    initial_state: Tensor | None,
    delta_softplus: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """y, the last state and carry, see `ganglion.ops.dispatch`."""
    from . import selective_scan_launch

    return selective_scan_launch.forward(u, delta, A, B, C, D, z, delta_bias, initial_state, delta_softplus)


def backward(
    grad_y: Tensor,
    grad_last_state: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    initial_state: Tensor | None,
    carry: Tensor,
    delta_softplus: bool,
) -> tuple[Tensor | None, ...]:
    """The gradients, see `ganglion.ops.dispatch`."""
    from . import selective_scan_launch

    inputs = (u, delta, A, B, C, D, z, delta_bias, initial_state)
    return selective_scan_launch.backward(grad_y, grad_last_state, *inputs, carry, delta_softplus)
