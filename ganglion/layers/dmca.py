"""DMCA: SparX's dynamic multi-layer channel aggregator (section 3.1, Figure 3).

Where the paper and the published networks differ, this follows the networks: the softmax is taken of the scaled scores,
the value is concatenated after its projection, and where nothing is reduced the projected query replaces the input.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn

from .basic import Conv2d, GELU2d, Linear2d


class ChannelAttention(nn.Module):
    """Attention between channels, in groups: every channel of z is a mixture of the channels of v in its group.

    q, k: (B, C, h, w). v: (B, C, H, W). Returns the groups of z in order, each (B, C / groups, H, W).
    learned_scale: the scores are multiplied by a parameter instead of 1 / sqrt(h * w), as in the published detection
        networks, whose input size varies.
    """

    def __init__(self, groups: int, *, learned_scale: bool = False, device=None, dtype=None):
        super().__init__()
        self.groups = groups
        # The published start: 1 / sqrt of the number of reduced pixels of an 800 x 1333 image.
        start = (800 * 1333 / 16 / 64) ** -0.5
        self.scale = (
            nn.Parameter(torch.full((1,), start, device=device, dtype=dtype)) if learned_scale else None
        )

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> list[Tensor]:
        B, C, H, W = v.shape
        size = C // self.groups
        q_BLC = q.permute(0, 2, 3, 1).flatten(1, 2)
        if self.scale is not None:
            q_BLC = q_BLC * self.scale.to(q.dtype)
        else:
            q_BLC = q_BLC * (q.shape[2] * q.shape[3]) ** -0.5
        k_BLC = k.permute(0, 2, 3, 1).flatten(1, 2)
        v_BLC = v.permute(0, 2, 3, 1).flatten(1, 2)
        z: list[Tensor] = []
        # Group by group, so that matrix products read strided views and nothing is copied.
        for g in range(self.groups):
            c, d = g * size, (g + 1) * size
            scores = torch.bmm(k_BLC[:, :, c:d].mT, q_BLC[:, :, c:d])  # (B, key, query)
            z_BLC = torch.bmm(v_BLC[:, :, c:d], scores.softmax(1))
            z.append(z_BLC.view(B, H, W, size).permute(0, 3, 1, 2))
        return z


class DMCA(nn.Module):
    """Reads the earlier features selectively and returns the mixer's inner features.

    dim: C. n_earlier: number L of earlier features. out_channels: of the result; what three groups of equal size leave
        over is filled with channel means. sr_ratio: spatial reduction of query and key. groups: of the attention.
    skip: concatenate input and value to the attention's result ("w/o Skip" of Table 8 if False).
    """

    def __init__(
        self,
        dim: int,
        n_earlier: int,
        out_channels: int,
        *,
        sr_ratio: int,
        groups: int = 4,
        skip: bool = True,
        learned_scale: bool = False,
        device=None,
        dtype=None,
    ):
        super().__init__()
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        self.out_channels, self.skip = out_channels, skip
        self.d_norm = nn.GroupNorm(1, n_earlier * dim, **dd)
        self.d_proj = project_earlier(dim, n_earlier, 2 * dim, dd)
        self.q = nn.Sequential(spatial_reduction(dim, sr_ratio, dd), *conv_bn(dim, dd))
        self.k = nn.Sequential(spatial_reduction(dim, sr_ratio, dd), *conv_bn(dim, dd))
        self.v = nn.Sequential(*conv_bn(dim, dd))
        self.attention = ChannelAttention(groups, learned_scale=learned_scale, **dd)
        self.fuse = Fusion(dim, out_channels, parts=3 if skip else 1, **dd)

    def forward(self, x: Tensor, earlier: list[Tensor]) -> Tensor:
        """x: (B, C, H, W), normalised. earlier: L maps (B, C, H, W). Returns (B, out_channels, H, W)."""
        k, v = self.d_proj(self.d_norm(torch.cat(earlier, 1))).chunk(2, 1)
        q, k, v = self.q(x), self.k(k), self.v(v)
        z = self.attention(q, k, v)
        if not self.skip:
            return self.fuse(z)
        return self.fuse([query_unless_reduced(q, x)] + z + [v])


@torch.fx.wrap
def query_unless_reduced(q: Tensor, x: Tensor) -> Tensor:
    """The query if it has the size of the input, else the input."""
    return q if q.shape[2:] == x.shape[2:] else x


class Fusion(nn.Sequential):
    """Concatenation of maps to parts * C channels, depthwise 3x3, GELU, grouped 1x1 after a channel shuffle.

    With three parts every group sees a third of the channels of each of them. Channels of the result that three groups
    of equal size leave over are means: of all channels, or of each half of them.
    """

    def __init__(self, dim: int, out_channels: int, *, parts: int = 3, device=None, dtype=None):
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        width, pad = parts * dim, out_channels % parts
        super().__init__(
            Conv2d(width, width, 3, padding=1, groups=width, **dd),
            GELU2d(),
            Conv2d(width, out_channels - pad, 1, groups=parts, **dd),
        )
        self.parts, self.pad = parts, pad

    def forward(self, maps: list[Tensor]) -> Tensor:
        x = torch.cat(maps, 1)
        B, C, H, W = x.shape
        x = x.reshape(B, C // self.parts, self.parts, H, W).transpose(1, 2).reshape(B, C, H, W)
        for layer in self:
            x = layer(x)
        if self.pad > 0:
            means = F.adaptive_avg_pool1d(x.permute(0, 2, 3, 1).flatten(1, 2), self.pad)
            x = torch.cat([x, means.view(B, H, W, self.pad).permute(0, 3, 1, 2)], 1)
        return x


def project_earlier(dim: int, n_earlier: int, out_channels: int, dd: dict) -> nn.Sequential:
    """(B, L * C, H, W) -> (B, out_channels, H, W): depthwise 3x3, BatchNorm, GELU, 1x1, GELU."""
    width = n_earlier * dim
    return nn.Sequential(
        Conv2d(width, width, 3, padding=1, groups=width, bias=False, **dd),
        nn.BatchNorm2d(width, **dd),
        GELU2d(),
        Linear2d(width, out_channels, **dd),
        GELU2d(),
    )


def spatial_reduction(dim: int, ratio: int, dd: dict) -> nn.Module:
    """A strided depthwise convolution, BatchNorm and GELU: side n becomes ceil(n / ratio)."""
    if ratio == 1:
        return nn.Identity()
    return nn.Sequential(
        Conv2d(dim, dim, ratio + 1, stride=ratio, padding=(ratio + 1) // 2, groups=dim, bias=False, **dd),
        nn.BatchNorm2d(dim, **dd),
        GELU2d(),
    )


def conv_bn(dim: int, dd: dict) -> tuple[nn.Module, nn.Module]:
    """A linear projection and its BatchNorm."""
    return Linear2d(dim, dim, bias=False, **dd), nn.BatchNorm2d(dim, **dd)
