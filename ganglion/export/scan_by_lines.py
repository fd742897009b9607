"""`scan2d` in PyTorch's own operators, for programs that run where this library is not: of any size, in few steps.

The walk is cut into its lines as in `onnx_scan`, which says how. Its two loops are torch's `scan`, one node each of a
program; or, for a compiler, which makes nothing of loops, log2(length) rounds of whole-map operations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._higher_order_ops.scan import scan

from ..ops.routes import Route


def scan_by_lines(
    x: Tensor,
    proj: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor,
    routes: Sequence[int],
    backend: str,
    size: Sequence[int],
    log_A: bool = False,
    *,
    loop_free: bool = False,
) -> tuple[Tensor, Tensor]:
    """What the operator `ganglion::scan2d` returns as networks call it, of tokens; an empty tensor in place of the
    carries, which are for a backward pass. loop_free: without torch's `scan`; of one size."""
    solve = _halved if loop_free else _loop
    decay_KND = (-torch.exp(A) if log_A else A).transpose(1, 2)
    rank, state = dt_weight.shape[2], A.shape[2]
    x_BHWD, proj_BHWC = (t.unflatten(1, list(size)) for t in (x, proj))
    y = D.sum(0) * x_BHWD
    walks = [(k, Route.from_code(code)) for k, code in enumerate(routes)]
    for transpose in (False, True):
        group = [(k, route) for k, route in walks if route.transpose is transpose]
        for restart in (False, True):
            chosen = [(k, route) for k, route in group if route.restart is restart]
            if chosen:
                y = y + _walked(x_BHWD, proj_BHWC, dt_weight, dt_bias, decay_KND, chosen, rank, state, solve)
    return y.reshape(x.shape), x.new_empty(0)


def _walked(
    x_BHWD: Tensor,
    proj_BHWC: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    decay_KND: Tensor,
    walks: Sequence[tuple[int, Route]],
    rank: int,
    state: int,
    solve: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """The sum of walks whose lines are all rows or all columns, and all of whose states restart or none."""
    first = walks[0][1]
    # Steps, batch, lines: (T, B, M, C).
    order, back = ((1, 0, 2, 3),) * 2 if first.transpose else ((2, 0, 1, 3), (1, 2, 0, 3))
    flips = [[axis for axis, flip in ((1, r.flip_rows), (2, r.flip_cols)) if flip] for _, r in walks]

    def turned(map_BHWC: Tensor, axes: list[int]) -> Tensor:
        return (map_BHWC.flip(axes) if axes else map_BHWC).permute(order)

    each = rank + 2 * state
    x_TKBMD = torch.stack([turned(x_BHWD, axes) for axes in flips], 1)
    parts = [
        turned(proj_BHWC[..., k * each : (k + 1) * each], axes)
        for (k, _), axes in zip(walks, flips, strict=True)
    ]
    low, B, C = torch.stack(parts, 1).split([rank, state, state], -1)
    weight, bias, decay = (torch.stack([t[k] for k, _ in walks]) for t in (dt_weight, dt_bias, decay_KND))
    v = low @ weight.transpose(1, 2)[:, None] + bias[:, None, None]
    dt = F.softplus(v)[..., None, :]
    decay = decay[:, None, None]
    h = solve(torch.exp(dt * decay), dt * x_TKBMD[..., None, :] * B[..., None])
    if not first.restart:
        p = torch.exp(dt.cumsum(0) * decay)  # the decays of all steps up to here, multiplied
        after = solve(p[-1].movedim(2, 0), h[-1].movedim(2, 0))
        before = torch.cat((torch.zeros_like(after[:1]), after[:-1]))
        h = h + p * before.movedim(0, 2)
    y_TKBMD = (C[..., None] * h).sum(-2)
    found = [y_TKBMD[:, i].permute(back) for i in range(len(walks))]
    summed = [y.flip(axes) if axes else y for y, axes in zip(found, flips, strict=True)]
    return torch.stack(summed).sum(0)


def _loop(a: Tensor, b: Tensor) -> Tensor:
    """h_t = a_t * h_(t-1) + b_t along axis 0, from zero. Of vectors: of more axes, strides of dynamic sizes would have
    to be proven."""
    flat_a, flat_b = (t.reshape(t.shape[0], -1).contiguous() for t in (a, b))
    _, found = scan(_step, flat_a.new_zeros(flat_a.shape[1]), (flat_a, flat_b))
    return found.reshape(b.shape)


def _step(h: Tensor, step: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    after = step[0] * h + step[1]
    return after, after.clone()


def _halved(a: Tensor, b: Tensor) -> Tensor:
    """As `_loop`: pairs are combined to one step each, half the walk is solved, the states between are filled in."""
    length = a.shape[0]
    if length == 1:
        return b
    if length % 2:  # a step that changes nothing
        a, b = torch.cat((a, torch.ones_like(a[:1]))), torch.cat((b, torch.zeros_like(b[:1])))
    (a_0, a_1), (b_0, b_1) = (t.unflatten(0, (-1, 2)).unbind(1) for t in (a, b))
    h_1 = _halved(a_1 * a_0, a_1 * b_0 + b_1)
    h_0 = a_0 * torch.cat((torch.zeros_like(h_1[:1]), h_1[:-1])) + b_0
    return torch.stack((h_0, h_1), 1).flatten(0, 1)[:length]
