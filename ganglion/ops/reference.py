"""The recurrence as its definition says it, in plain PyTorch: the oracle every backend is tested against.

Differentiable, any floating dtype, one Python step per position: for tests and for reading, not for speed.

Shape letters: B batch, H W height and width, L = H * W, K routes (or groups), D channels of a route,
R dt_rank, N d_state.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .routes import Route


def selective_scan_reference(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
    initial_state: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """The 1-D selective scan, arguments and results as of `selective_scan`, which states the formula."""
    work = torch.promote_types(u.dtype, torch.float32)
    u_, dt, A_ = u.to(work), delta.to(work), A.to(work)
    B_, C_ = (_per_channel(t.to(work), u.shape[1], u.shape[2]) for t in (B, C))
    if delta_bias is not None:
        dt = dt + delta_bias.to(work)[:, None]
    if delta_softplus:
        dt = F.softplus(dt)
    h = u_.new_zeros(*u.shape[:2], A.shape[1]) if initial_state is None else initial_state.to(work)
    ys = []
    for t in range(u.shape[2]):
        dt_t = dt[:, :, t, None]
        h = torch.exp(dt_t * A_) * h + dt_t * B_[..., t] * u_[:, :, t, None]
        ys.append((C_[..., t] * h).sum(-1))
    y = torch.stack(ys, dim=2) if ys else torch.zeros_like(u_)
    if D is not None:
        y = y + D.to(work)[:, None] * u_
    if z is not None:
        y = y * F.silu(z.to(work))
    return (y.to(u.dtype), h) if return_last_state else y.to(u.dtype)


def _per_channel(B: Tensor, channels: int, length: int) -> Tensor:
    """B or C, constant (D, N), shared (B, N, L) or grouped (B, G, N, L), as (B, D, N, L); B may be 1."""
    if B.ndim == 2:
        return B[None, ..., None].expand(1, -1, -1, length)
    if B.ndim == 3:
        B = B[:, None]
    return B.repeat_interleave(channels // B.shape[1], dim=1)


def scan2d_reference(
    x: Tensor,
    proj: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor | None,
    routes: Sequence[Route],
) -> Tensor:
    """The 2-D selective scan of `scan2d`: every route's selective scan, summed back at its pixels."""
    batch, height, width, channels = x.shape
    rank, state = dt_weight.shape[2], A.shape[2]
    work = torch.promote_types(x.dtype, torch.float32)
    x_BLD = x.to(work).reshape(batch, -1, channels)
    proj_BLKP = proj.to(work).reshape(batch, x_BLD.shape[1], len(routes), rank + 2 * state)
    y_BLD = torch.zeros_like(x_BLD)
    for k, route in enumerate(routes):
        order = route.order(height, width, x.device)
        line = route.line(height, width) if route.restart else len(order)
        dt_BLR, B_BLN, C_BLN = proj_BLKP[:, order, k].split([rank, state, state], dim=-1)
        delta_BDL = (dt_BLR @ dt_weight[k].to(work).T).mT
        # With `restart` every line is a sequence of its own.
        for i in range(0, len(order), max(line, 1)):
            part = slice(i, i + line)
            y_BDL = selective_scan_reference(
                x_BLD[:, order[part]].mT,
                delta_BDL[..., part],
                A[k],
                B_BLN[:, part].mT[:, None],
                C_BLN[:, part].mT[:, None],
                None if D is None else D[k],
                delta_bias=dt_bias[k],
                delta_softplus=True,
            )
            assert isinstance(y_BDL, Tensor)
            y_BLD = y_BLD.index_add(1, order[part], y_BDL.mT)
    return y_BLD.reshape(x.shape).to(x.dtype)
