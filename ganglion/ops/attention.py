"""The scan written as its matrix: what every step of a route reads of every other (VMamba, section 4.3, Eq. 10-19).

A scan is linear in what it scans, so that a route's output is a lower triangular matrix times its input, one matrix for
each channel: masked attention whose weights are products instead of a softmax. With S_i the log-decay up to step i,

    S_i = A sum_{t <= i} dt_t
    CB[i, j]     = sum_n C_i B_j                           (Q K^T of Figure 4)
    CwBw[i, j]   = sum_n C_i B_j exp(S_i - S_j)            (Eq. 19)
    CwBdtw[i, j] = CwBw[i, j] dt_j                         (what is really added)
    ww[i, j]     = sum_n exp(S_i - S_j)                    (Figure 7)

for j <= i, else 0. The differences of S are sums that start at one of the two steps: nothing is divided, nothing
overflows, and near pairs lose no digits far along the route. docs/scan_as_attention.md derives them.

Shape letters: L = H * W steps, D channels, N d_state, K routes, R dt_rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import unknown
from .routes import Route

Mode = Literal["CB", "CwBw", "CwBdtw", "ww"]


@dataclass(frozen=True, kw_only=True)
class Walk:
    """One route's recurrence over one image, by steps: h_i = exp(dt_i A) h_{i-1} + dt_i B_i x_i, y_i = <C_i, h_i>.

    dt: (L, D), step sizes. A: (D, N). B, C: (L, N). All of one floating dtype, in which everything is computed.
    order: (L,) int64, the pixel of each step. line: after N steps the state is 0 again; L if it never is.

    Methods raise ValueError for an unknown mode and IndexError for a step outside 0..L-1.
    """

    dt: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    order: Tensor
    line: int

    def channels(self, chosen: slice) -> Walk:
        """The same walk of some channels only."""
        return replace(self, dt=self.dt[:, chosen], A=self.A[chosen])

    def row(self, i: int, mode: Mode = "CwBdtw") -> Tensor:
        """What step i reads: (L,) by steps, mean over the channels. Memory O(L D), no (L, L) array."""
        part, entries = self._row(i, mode)
        return self._whole(part, entries.mean(-1))

    def column(self, j: int, mode: Mode = "CwBdtw") -> Tensor:
        """Which steps read step j: (L,) by steps, mean over the channels. Memory O(L D), no (L, L) array."""
        j = self._step(j)
        part = slice(j, min(j - j % self.line + self.line, len(self.order)))
        since = F.pad(self.dt[j + 1 : part.stop].cumsum(0), (0, 0, 1, 0))
        here = slice(j, j + 1)
        return self._whole(
            part, self._entries(mode, since, self.C[part], self.B[here], self.dt[here]).mean(-1)
        )

    def matrix(self, mode: Mode = "CwBdtw") -> Tensor:
        """(L, L): all rows, by steps, mean over the channels."""
        return torch.stack([self.row(i, mode) for i in range(len(self.order))])

    def diagonal(self, mode: Mode = "CwBdtw") -> Tensor:
        """What every step reads of itself: (L,) by steps."""
        return self._entries(mode, torch.zeros_like(self.dt), self.C, self.B, self.dt).mean(-1)

    def output(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Eq. 16 and 17, row by row: what the walk makes of x, without the term D x.

        x: (L, D), by steps. state: (D, N) before the first step, 0 if None.
        Returns y (L, D) and the state after the last step (D, N).
        """
        ys = []
        for i in range(len(self.order)):
            part, entries = self._row(i, "CwBdtw")
            y = (entries * x[part]).sum(0)
            if state is not None and part.start == 0:
                y = y + (self._decay(0, i) * state) @ self.C[i]
            ys.append(y)
        last = len(self.order) - 1
        start = last - last % self.line
        since = _after(self.dt[start:])
        h = torch.zeros_like(self.A)
        for j in range(start, last + 1):
            entered = self.dt[j, :, None] * self.B[j] * x[j, :, None]
            h = h + torch.exp(since[j - start, :, None] * self.A) * entered
        if state is not None and start == 0:
            h = h + self._decay(0, last) * state
        return torch.stack(ys), h

    def _decay(self, first: int, last: int) -> Tensor:
        """(D, N): what is left of a state after the steps first..last."""
        return torch.exp(self.dt[first : last + 1].sum(0)[:, None] * self.A)

    def _row(self, i: int, mode: Mode) -> tuple[slice, Tensor]:
        """The steps that step i reads, and the entries (M, D) of these M steps."""
        i = self._step(i)
        part = slice(i - i % self.line, i + 1)
        here = slice(i, i + 1)
        since = _after(self.dt[part])
        return part, self._entries(mode, since, self.C[here], self.B[part], self.dt[part])

    def _entries(self, mode: Mode, since: Tensor, C: Tensor, B: Tensor, dt: Tensor) -> Tensor:
        """(M, D). since: (M, D), the sum of dt between the steps of a pair. C, B, dt: of M steps, or of one."""
        if mode not in get_args(Mode):
            raise ValueError(unknown("mode", mode, get_args(Mode)))
        product = torch.ones_like(C * B) if mode == "ww" else C * B
        if mode == "CB":
            return product.sum(-1, keepdim=True).expand_as(since)
        total = torch.zeros_like(since)
        for n in range(self.A.shape[1]):  # one state at a time: N need not be in memory
            total += product[:, n, None] * torch.exp(since * self.A[:, n])
        return total * dt if mode == "CwBdtw" else total

    def _whole(self, part: slice, values: Tensor) -> Tensor:
        whole = values.new_zeros(len(self.order))
        whole[part] = values
        return whole

    def _step(self, i: int) -> int:
        if not 0 <= i < len(self.order):
            raise IndexError(f"step {i}: expected 0..{len(self.order) - 1}")
        return i


def _after(dt: Tensor) -> Tensor:
    """(M, D) -> (M, D): at each step the sum of the later ones, taken from the last step backwards."""
    return F.pad(dt[1:].flip(0).cumsum(0).flip(0), (0, 0, 0, 1))


def walks(proj: Tensor, dt_weight: Tensor, dt_bias: Tensor, A: Tensor, routes: Sequence[Route]) -> list[Walk]:
    """The walks of `scan2d` over one image, from its arguments of these names.

    proj: (H, W, K * (R + 2 * N)). dt_weight: (K, D, R). dt_bias: (K, D). A: (K, D, N), negative.
    Computed in proj's dtype, at least float32.
    """
    height, width, _ = proj.shape
    work = torch.promote_types(proj.dtype, torch.float32)
    rank, state = dt_weight.shape[2], A.shape[2]
    proj_LKP = proj.to(work).reshape(height * width, len(routes), rank + 2 * state)
    found = []
    for k, route in enumerate(routes):
        order = route.order(height, width, proj.device)
        dt_LR, B_LN, C_LN = proj_LKP[order, k].split([rank, state, state], dim=-1)
        dt_LD = F.softplus(dt_LR @ dt_weight[k].to(work).T + dt_bias[k].to(work))
        line = route.line(height, width) if route.restart else height * width
        found.append(Walk(dt=dt_LD, A=A[k].to(work), B=B_LN, C=C_LN, order=order, line=max(line, 1)))
    return found


def to_image(values: Tensor, walk: Walk) -> Tensor:
    """(L,) by steps -> (L,) by pixels, row by row; (L, L) -> (L, L) in both axes."""
    image = torch.empty_like(values)
    if values.ndim == 1:
        image[walk.order] = values
    else:
        image[walk.order[:, None], walk.order] = values
    return image
