"""Shifted-window attention (Liu et al. 2021, Swin) as a mixer, around timm's `WindowAttention`.

Windows are fixed; a map of any size is padded at its ends to whole windows. A map that is no larger than a window
is not shifted.
"""

from __future__ import annotations

from typing import Any

import timm.models.swin_transformer
import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn

from .basic import Device, DType
from .mixer import Mixer


class WindowAttention(timm.models.swin_transformer.WindowAttention):
    """timm's attention without its input projection: (windows, area, 3 C) to (windows, area, C).

    The products are calls of `torch.matmul`. The operator `@` is another one to tools that count operations by putting
    a function of theirs in its place, as ptflops does: they would leave out a third of a small network.
    """

    def __init__(self, dim: int, heads: int, window: int, *, device: Device = None, dtype: DType = None):
        super().__init__(dim, num_heads=heads, window_size=window, device=device, dtype=dtype)
        # The projection acts on the whole map, before it is cut into windows.
        itself: Any = self  # timm's type of it is that of a linear layer
        itself.qkv = nn.Identity()

    def forward(self, x: Tensor, batch: int, mask: Tensor | None = None) -> Tensor:
        """x: queries, keys and values of `batch` images. mask: (windows an image, area, area), added to the scores."""
        q, k, v = (
            x.unflatten(2, (3, self.num_heads, x.shape[2] // (3 * self.num_heads)))
            .permute(2, 0, 3, 1, 4)
            .unbind(0)
        )
        scores = torch.matmul(q * self.scale, k.transpose(-2, -1)) + self._get_rel_pos_bias()
        if mask is not None:
            scores = (scores.unflatten(0, [batch, mask.shape[0]]) + mask[:, None]).flatten(0, 1)
        scores = self.attn_drop(self.softmax(scores))  # one name: the scores before are given up
        y = torch.matmul(scores, v)
        return self.proj_drop(self.proj(y.transpose(1, 2).flatten(2)))


class WindowAttention2d(Mixer):
    """Multi-head attention within windows of `window` x `window` pixels, (B, dim, H, W) -> (B, dim, H, W).

    shift: move the windows by half their size. in_proj: an aggregator in place of the projection to queries, keys and
    values.
    """

    def __init__(
        self,
        dim: int,
        *,
        heads: int,
        window: int = 7,
        shift: bool = False,
        in_proj: nn.Module | None = None,
        device: Device = None,
        dtype: DType = None,
    ):
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        super().__init__(dim, 3 * dim, in_proj, **dd)
        self.window: int = window
        self.shift: bool = shift
        self.attention: WindowAttention = WindowAttention(dim, heads, window, **dd)

    def forward(self, x: Tensor, earlier: list[Tensor]) -> Tensor:
        """x: (B, dim, H, W). earlier: the features a ganglion layer reads, each (B, dim, H, W)."""
        if isinstance(x, Tensor) and x.shape[0] == 0:
            return x  # timm's attention cannot tell its shape
        qkv = self.project(x, earlier).unflatten(1, x.shape[2:])
        windows = partition(qkv, self.window, self.shift)
        mask = shift_mask(qkv, self.window) if self.shift else None
        y = self.attention(windows, x.shape[0], mask)
        return merge(y, qkv, self.window, self.shift).permute(0, 3, 1, 2)


@torch.fx.wrap
def partition(x: Tensor, window: int, shift: bool) -> Tensor:
    """(B, H, W, C) -> (B * windows, window * window, C)."""
    B, H, W, C = x.shape
    rows, cols = (H + window - 1) // window, (W + window - 1) // window
    x = F.pad(x, (0, 0, 0, cols * window - W, 0, rows * window - H))
    if shift:
        offset = shift_of(H, W, window)
        x = torch.roll(x, (-offset, -offset), (1, 2))
    x = x.view(B, rows, window, cols, window, C).transpose(2, 3)
    return x.reshape(B * rows * cols, window * window, C)


@torch.fx.wrap
def merge(windows: Tensor, like: Tensor, window: int, shift: bool) -> Tensor:
    """Inverse of `partition` for the map `like`: (B * windows, window * window, C) -> (B, H, W, C)."""
    B, H, W = like.shape[0], like.shape[1], like.shape[2]
    rows, cols = (H + window - 1) // window, (W + window - 1) // window
    C = windows.shape[2]
    x = windows.view(B, rows, cols, window, window, C).transpose(2, 3)
    x = x.reshape(B, rows * window, cols * window, C)
    if shift:
        offset = shift_of(H, W, window)
        x = torch.roll(x, (offset, offset), (1, 2))
    return x.narrow(1, 0, H).narrow(2, 0, W).contiguous()


@torch.fx.wrap
def shift_mask(like: Tensor, window: int) -> Tensor:
    """0 between pixels of one window that were neighbours before the shift, else -100: (windows, area, area)."""
    H, W = like.shape[1], like.shape[2]
    offset = shift_of(H, W, window)
    region = _region(H, window, offset, like)[:, None] * 3 + _region(W, window, offset, like)[None, :]
    cut = partition(region[None, :, :, None], window, False)[:, :, 0]
    return (cut[:, None, :] != cut[:, :, None]).to(like.dtype) * -100.0


def _region(side: int, window: int, offset: int, like: Tensor) -> Tensor:
    """For each shifted position of a padded side: 0 in the body, 1 and 2 in the last window's two parts."""
    length = (side + window - 1) // window * window
    i = torch.arange(length, device=like.device)
    return (i >= length - window).int() + (i >= length - offset).int()


def shift_of(H: int, W: int, window: int) -> int:
    """Half a window, or 0 for a map no larger than one; no branch, which would tie exported programs to sizes."""
    windows = ((H + window - 1) // window) * ((W + window - 1) // window)
    return window // 2 * (1 - 1 // windows)
