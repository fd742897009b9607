"""`scan2d` of PyTorch operations, without a loop over positions.

Memory is linear in B * D * L * N for one route at a time. It is also the plain form (`ganglion.ops.operator`): every
operation returns a new tensor.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import recurrence
from ..routes import CHUNK, Route

#: Parameters come in the state's dtype: see `ganglion.ops.dispatch`.
PREPARES = False


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
    work = dt_weight.dtype
    y = x.new_zeros((), dtype=work) if D is None else D.sum(0) * x.to(work)
    carries = []
    for k, walk, x_BLD, dt_low, B_BLN1, C_BLN1 in _walks(x, proj, dt_weight, A, routes):
        dt = F.softplus(dt_low @ dt_weight[k].T + dt_bias[k])
        y_route, h = recurrence.forward(x_BLD, dt, A[k], B_BLN1, C_BLN1, walk.line)
        y = y + walk.scatter(y_route)
        first = torch.zeros_like(h[:, :1])
        carries.append(torch.cat([first, h[:, CHUNK - 1 : -1 : CHUNK]], dim=1))
    return y.to(x.dtype), torch.stack(carries, dim=1).flatten(1)


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
    work = dt_weight.dtype
    grad = grad_y.to(work)
    grad_x = x.new_zeros((), dtype=work) if D is None else D.sum(0) * grad
    by_route = []
    for k, walk, x_BLD, dt_low, B_BLN1, C_BLN1 in _walks(x, proj, dt_weight, A, routes):
        v = dt_low @ dt_weight[k].T + dt_bias[k]
        grad_route, grad_dt, grad_A, grad_B, grad_C, _ = recurrence.backward(
            walk.gather(grad), x_BLD, F.softplus(v), A[k], B_BLN1, C_BLN1, walk.line
        )
        grad_v = grad_dt * recurrence.softplus_grad(v)
        grad_x = grad_x + walk.scatter(grad_route)
        grad_proj = walk.scatter(torch.cat([grad_v @ dt_weight[k], grad_B[..., 0], grad_C[..., 0]], dim=-1))
        grad_weight = torch.einsum("bld,blr->dr", grad_v, dt_low)
        by_route.append((grad_proj, grad_weight, grad_v.sum((0, 1)), grad_A))
    grad_proj, grad_dt_weight, grad_dt_bias, grad_A = zip(*by_route, strict=True)
    return (
        grad_x.to(x.dtype),
        torch.cat(grad_proj, dim=-1).to(proj.dtype),
        torch.stack(grad_dt_weight),
        torch.stack(grad_dt_bias),
        torch.stack(grad_A),
        None if D is None else (grad * x.to(work)).sum((0, 1, 2)).repeat(len(routes), 1),
    )


class _Walk:
    """A route over maps (B, H, W, C): their pixels in its order, (B, L, C), and back.

    line: the length of the lines after which the state restarts, None if it does not.
    """

    def __init__(self, code: int, height: int, width: int):
        route = Route.from_code(code)
        self.line = route.line(height, width) if route.restart else None
        self._size, self._transpose = (height, width), route.transpose
        self._flips = [axis for axis, flip in ((1, route.flip_rows), (2, route.flip_cols)) if flip]

    def gather(self, map_BHWC: Tensor) -> Tensor:
        turned = map_BHWC.flip(self._flips) if self._flips else map_BHWC
        return (turned.transpose(1, 2) if self._transpose else turned).flatten(1, 2)

    def scatter(self, walk_BLC: Tensor) -> Tensor:
        if self._transpose:
            turned = walk_BLC.unflatten(1, self._size[::-1]).transpose(1, 2)
        else:
            turned = walk_BLC.unflatten(1, self._size)
        return turned.flip(self._flips) if self._flips else turned


def _walks(
    x: Tensor, proj: Tensor, dt_weight: Tensor, A: Tensor, routes: Sequence[int]
) -> Iterator[tuple[int, _Walk, Tensor, Tensor, Tensor, Tensor]]:
    """Per route: index, walk, and x, low-rank dt, B and C in its order, the last two (B, L, N, 1)."""
    rank, state, work = dt_weight.shape[2], A.shape[2], dt_weight.dtype
    for k, (code, proj_k) in enumerate(zip(routes, proj.chunk(len(routes), dim=-1), strict=True)):
        walk = _Walk(code, *x.shape[1:3])
        low, B_BLN, C_BLN = walk.gather(proj_k).to(work).split([rank, state, state], dim=-1)
        yield k, walk, walk.gather(x).to(work), low, B_BLN[..., None], C_BLN[..., None]
