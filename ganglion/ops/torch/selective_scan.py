"""`selective_scan` of PyTorch operations, without a loop over positions.

Memory is linear in B * L * D * N for the channels of one group at a time. It is also the plain form
(`ganglion.ops.operator`): every operation returns a new tensor.
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
    """See `ganglion.ops.dispatch`. Here u may be empty."""
    batch, channels, length = u.shape
    by_group = []
    for part, group in _groups(channels, B, C):
        v = _step_input(delta, delta_bias, part, A.dtype)
        first = None if initial_state is None else initial_state[:, part].mT
        x = u[:, part].mT.to(A.dtype)
        y, h = recurrence.forward(
            x,
            F.softplus(v) if delta_softplus else v,
            A[part],
            _weights(B, part, group, A.dtype),
            _weights(C, part, group, A.dtype),
            None,
            first,
        )
        if D is not None:
            y = y + D[part] * x
        if z is not None:
            y = y * F.silu(z[:, part].mT.to(A.dtype))
        if first is None:
            first = h.new_zeros(batch, h.shape[2], h.shape[3])
        last = h[:, -1] if length else first
        carry = torch.cat([first[:, None], h[:, CHUNK - 1 : -1 : CHUNK]], dim=1)[:, : -(-length // CHUNK)]
        by_group.append((y.mT, last.mT, carry))
    y, last_state, carry = zip(*by_group, strict=True)
    return torch.cat(y, dim=1).to(u.dtype), torch.cat(last_state, dim=1), torch.cat(carry, dim=3)


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
    """See `ganglion.ops.dispatch`. The carries are not needed: the states are computed again at once.

    Here u may be empty.
    """
    by_group = []
    for part, group in _groups(u.shape[1], B, C):
        v = _step_input(delta, delta_bias, part, A.dtype)
        dt = F.softplus(v) if delta_softplus else v
        x, g = u[:, part].mT.to(A.dtype), grad_y[:, part].mT.to(A.dtype)
        B_part, C_part = _weights(B, part, group, A.dtype), _weights(C, part, group, A.dtype)
        first = None if initial_state is None else initial_state[:, part].mT
        grad_z = grad_D = grad_bias = None
        if z is not None:
            y = recurrence.forward(x, dt, A[part], B_part, C_part, None, first)[0]
            if D is not None:
                y = y + D[part] * x
            gate = z[:, part].mT.to(A.dtype)
            slope = torch.sigmoid(gate)
            grad_z = (g * y * slope * (1 + gate * (1 - slope))).mT
            g = g * gate * slope
        grad_x, grad_dt, grad_A, grad_B, grad_C, grad_first = recurrence.backward(
            g, x, dt, A[part], B_part, C_part, None, first, grad_last_state[:, part].mT
        )
        if not u.shape[2]:
            grad_first = grad_last_state[:, part].mT
        grad_v = grad_dt * recurrence.softplus_grad(v) if delta_softplus else grad_dt
        if D is not None:
            grad_x = grad_x + D[part] * g
            grad_D = (g * x).sum((0, 1))
        if delta_bias is not None:
            grad_bias = grad_v.sum((0, 1))
        grad_B, grad_C = (
            grad[0, 0].mT if t.ndim == 2 else grad[..., 0].mT[:, None]
            for grad, t in ((grad_B, B), (grad_C, C))
        )
        by_group.append(
            (grad_x.mT, grad_v.mT, grad_A, grad_B, grad_C, grad_D, grad_z, grad_bias, grad_first.mT)
        )
    # Sequences and states have their channels second, parameters first.
    return tuple(
        None if t is None else torch.cat(parts, dim=0 if t.ndim <= 2 else 1).to(t.dtype)
        for t, parts in zip(
            (u, delta, A, B, C, D, z, delta_bias, initial_state), zip(*by_group, strict=True), strict=True
        )
    )


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
