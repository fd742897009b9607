"""`selective_scan` of PyTorch operations, without a loop over positions.

Memory is linear in B * L * D * N for the channels of one group at a time.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import recurrence
from ..routes import CHUNK


def rejects(u: Tensor, *, d_state: int) -> str | None:
    """Why this backend does not serve the call, None if it does."""
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
    """See `ganglion.ops.dispatch`."""
    batch, channels, length = u.shape
    y = torch.empty(u.shape, dtype=u.dtype, device=u.device)
    last_state = A.new_empty(batch, channels, A.shape[1])
    carry = A.new_zeros(batch, -(-length // CHUNK), A.shape[1], channels)
    for part, group in _groups(channels, B, C):
        v = _step_input(delta, delta_bias, part, A.dtype)
        first = None if initial_state is None else initial_state[:, part].mT
        x = u[:, part].mT.to(A.dtype)
        y_part, h = recurrence.forward(
            x,
            F.softplus(v) if delta_softplus else v,
            A[part],
            _weights(B, part, group, A.dtype),
            _weights(C, part, group, A.dtype),
            None,
            first,
        )
        if D is not None:
            y_part = y_part + D[part] * x
        if z is not None:
            y_part = y_part * F.silu(z[:, part].mT.to(A.dtype))
        y[:, part] = y_part.mT.to(u.dtype)
        last_state[:, part] = h[:, -1].mT
        carry[:, 1:, :, part] = h[:, CHUNK - 1 : -1 : CHUNK]
        if first is not None:
            carry[:, 0, :, part] = first
    return y, last_state, carry


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
    """See `ganglion.ops.dispatch`. The carries are not needed: the states are computed again at once."""
    tensors = (u, delta, A, B, C, D, z, delta_bias, initial_state)
    grads = [None if t is None else torch.zeros(t.shape, dtype=t.dtype, device=t.device) for t in tensors]
    grad_u, grad_delta, grad_A, grad_B, grad_C, grad_D, grad_z, grad_bias, grad_initial = grads
    assert grad_u is not None and grad_delta is not None and grad_A is not None
    assert grad_B is not None and grad_C is not None
    for part, group in _groups(u.shape[1], B, C):
        v = _step_input(delta, delta_bias, part, A.dtype)
        dt = F.softplus(v) if delta_softplus else v
        x, g = u[:, part].mT.to(A.dtype), grad_y[:, part].mT.to(A.dtype)
        B_part, C_part = _weights(B, part, group, A.dtype), _weights(C, part, group, A.dtype)
        first = None if initial_state is None else initial_state[:, part].mT
        if z is not None:
            assert grad_z is not None
            y = recurrence.forward(x, dt, A[part], B_part, C_part, None, first)[0]
            if D is not None:
                y = y + D[part] * x
            gate = z[:, part].mT.to(A.dtype)
            slope = torch.sigmoid(gate)
            grad_z[:, part] = (g * y * slope * (1 + gate * (1 - slope))).mT.to(z.dtype)
            g = g * gate * slope
        grad_x, grad_dt, grad_A[part], grad_B_part, grad_C_part, grad_first = recurrence.backward(
            g, x, dt, A[part], B_part, C_part, None, first, grad_last_state[:, part].mT
        )
        grad_v = grad_dt * recurrence.softplus_grad(v) if delta_softplus else grad_dt
        if D is not None:
            assert grad_D is not None
            grad_x = grad_x + D[part] * g
            grad_D[part] = (g * x).sum((0, 1))
        grad_u[:, part] = grad_x.mT.to(u.dtype)
        grad_delta[:, part] = grad_v.mT.to(delta.dtype)
        for grad, grad_part in ((grad_B, grad_B_part), (grad_C, grad_C_part)):
            if grad.ndim == 2:
                grad[part] = grad_part[0, 0].mT
            else:
                grad[:, group] = grad_part[..., 0].mT
        if grad_bias is not None:
            grad_bias[part] = grad_v.sum((0, 1))
        if grad_initial is not None:
            grad_initial[:, part] = grad_first.mT
    return tuple(grads)


def _groups(channels: int, B: Tensor, C: Tensor) -> Iterator[tuple[slice, int]]:
    """The channels of every group and its index."""
    groups = next((t.shape[1] for t in (B, C) if t.ndim == 4), 1)
    each = channels // groups
    return ((slice(i * each, (i + 1) * each), i) for i in range(groups))


def _weights(B: Tensor, part: slice, group: int, dtype: torch.dtype) -> Tensor:
    """B or C of a group as `recurrence` takes it."""
    return (B[part].mT[None, None] if B.ndim == 2 else B[:, group].mT[..., None]).to(dtype)


def _step_input(delta: Tensor, delta_bias: Tensor | None, part: slice, dtype: torch.dtype) -> Tensor:
    """delta + delta_bias of some channels, (B, L, D)."""
    v = delta[:, part].mT.to(dtype)
    return v if delta_bias is None else v + delta_bias[part]
