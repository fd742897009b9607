"""`scan2d` of PyTorch operations, without a loop over positions.

Memory is linear in B * D * L * N for one route at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import recurrence
from ..routes import CHUNK, Route


def rejects(x: Tensor, *, d_state: int, dt_rank: int) -> str | None:
    """Why this backend does not serve the call, None if it does."""
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
    """See `ganglion.ops.dispatch`."""
    batch, height, width, channels = x.shape
    work = dt_weight.dtype
    y_BLD = torch.zeros(batch, height * width, channels, dtype=work, device=x.device)
    carries = []
    for k, order, line, x_BLD, dt_low, B_BLN, C_BLN in _walks(x, proj, dt_weight, A, routes):
        dt = F.softplus(dt_low @ dt_weight[k].T + dt_bias[k])
        y_route, h = recurrence.forward(x_BLD, dt, A[k], B_BLN[..., None], C_BLN[..., None], line)
        y_BLD[:, order] += y_route
        first = torch.zeros_like(h[:, :1])
        carries.append(torch.cat([first, h[:, CHUNK - 1 : -1 : CHUNK]], dim=1))
    if D is not None:
        y_BLD += D.sum(0) * x.reshape(y_BLD.shape).to(work)
    return y_BLD.to(x.dtype).reshape(x.shape), torch.stack(carries, dim=1)


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
) -> tuple[Tensor | None, ...]:
    """See `ganglion.ops.dispatch`. The carries are not needed: the states are computed again at once."""
    batch, height, width, channels = x.shape
    work = dt_weight.dtype
    grad_y_BLD = grad_y.reshape(batch, height * width, channels).to(work)
    grad_x = torch.zeros_like(grad_y_BLD)
    grad_proj = torch.empty(
        batch, height * width, len(routes), proj.shape[-1] // len(routes), device=x.device, dtype=work
    )
    grad_dt_weight, grad_dt_bias, grad_A = (torch.empty_like(t) for t in (dt_weight, dt_bias, A))
    for k, order, line, x_BLD, dt_low, B_BLN, C_BLN in _walks(x, proj, dt_weight, A, routes):
        v = dt_low @ dt_weight[k].T + dt_bias[k]
        grad_route, grad_dt, grad_A[k], grad_B, grad_C, _ = recurrence.backward(
            grad_y_BLD[:, order], x_BLD, F.softplus(v), A[k], B_BLN[..., None], C_BLN[..., None], line
        )
        grad_x[:, order] += grad_route
        grad_v = grad_dt * recurrence.softplus_grad(v)
        grad_dt_bias[k] = grad_v.sum((0, 1))
        grad_dt_weight[k] = torch.einsum("bld,blr->dr", grad_v, dt_low)
        grad_proj[:, order, k] = torch.cat([grad_v @ dt_weight[k], grad_B[..., 0], grad_C[..., 0]], dim=-1)
    grad_D = None
    if D is not None:
        grad_x += D.sum(0) * grad_y_BLD
        grad_D = (grad_y_BLD * x.reshape(grad_y_BLD.shape).to(work)).sum((0, 1)).expand_as(D).clone()
    return (
        grad_x.to(x.dtype).reshape(x.shape),
        grad_proj.to(proj.dtype).reshape(proj.shape),
        grad_dt_weight,
        grad_dt_bias,
        grad_A,
        grad_D,
    )


def _walks(
    x: Tensor, proj: Tensor, dt_weight: Tensor, A: Tensor, routes: Sequence[int]
) -> Iterator[tuple[int, Tensor, int | None, Tensor, Tensor, Tensor, Tensor]]:
    """Per route: index, pixel order, length of the lines after which the state restarts (None if it does not), and x,
    low-rank dt, B, C in the order of the walk."""
    batch, height, width, channels = x.shape
    rank, state = dt_weight.shape[2], A.shape[2]
    x_BLD = x.reshape(batch, height * width, channels)
    proj_BLKP = proj.reshape(batch, height * width, len(routes), rank + 2 * state)
    for k, code in enumerate(routes):
        route = Route.from_code(code)
        order = route.order(height, width, x.device)
        line = route.line(height, width) if route.restart else None
        low, B_BLN, C_BLN = proj_BLKP[:, order, k].to(dt_weight.dtype).split([rank, state, state], dim=-1)
        yield k, order, line, x_BLD[:, order].to(dt_weight.dtype), low, B_BLN, C_BLN
