"""How a ganglion layer reads earlier features: DMCA and its rivals of SparX's Table 6, interchangeable.

An aggregator stands where a normal layer's mixer has its input projection. It is called with the normalised map x,
(B, C, H, W), and the list of L earlier maps of the same shape, and returns (B, out_channels, H, W); `out_channels` is
an attribute, which the mixer checks.

The paper describes the rivals in words only. Each docstring says which form was taken and how near its parameters and
FLOPs come to the row of the paper.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import check_choice
from .basic import Chain, Device, DType, make_norm, to_map, to_tokens
from .dmca import DMCA, Fusion, conv_bn, project_earlier, spatial_reduction
from .mlp import ConvFFN

torch.fx.wrap("to_map")
torch.fx.wrap("to_tokens")


AggregatorName = Literal["dmca", "concat", "no_cgca", "csa", "sra", "sca"]


class Concat(nn.Module):
    """Concatenation of x and the earlier features, norm, ConvFFN (L + 1) C -> 2 C -> out. Matches 27.9 M, 5.5 G."""

    def __init__(
        self, dim: int, n_earlier: int, out_channels: int, *, device: Device = None, dtype: DType = None
    ):
        super().__init__()
        self.out_channels = out_channels
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        width = (n_earlier + 1) * dim
        self.norm: nn.Module = make_norm("gn", width, **dd)
        self.ffn: ConvFFN = ConvFFN(width, 2 * dim, out_channels, **dd)

    def forward(self, x: Tensor, earlier: list[Tensor]) -> Tensor:
        return self.ffn(self.norm(torch.cat([x] + earlier, 1)))


class ConcatQueryValue(nn.Module):
    """DMCA without its attention ("w/o CGCA"): query and value, concatenated, ConvFFN 2 C -> C -> out.

    26.3 M, 5.3 G against the paper's 26.4 M, 5.3 G.
    """

    def __init__(
        self, dim: int, n_earlier: int, out_channels: int, *, device: Device = None, dtype: DType = None
    ):
        super().__init__()
        self.out_channels = out_channels
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        self.d_norm: nn.Module = make_norm("gn", n_earlier * dim, **dd)
        self.d_proj: Chain = project_earlier(dim, n_earlier, dim, dd)
        self.q: Chain = Chain(*conv_bn(dim, dd))
        self.v: Chain = Chain(*conv_bn(dim, dd))
        self.ffn: ConvFFN = ConvFFN(2 * dim, dim, out_channels, **dd)

    def forward(self, x: Tensor, earlier: list[Tensor]) -> Tensor:
        v = self.v(self.d_proj(self.d_norm(torch.cat(earlier, 1))))
        return self.ffn(torch.cat([self.q(x), v], 1))


class SpatialAttention(nn.Module):
    """Attention of the tokens of q, (B, L, C), to those of k and v, (B, N, C), in heads."""

    def __init__(self, heads: int):
        super().__init__()
        self.heads = heads

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        z = F.scaled_dot_product_attention(self._split(q), self._split(k), self._split(v))
        return z.transpose(1, 2).flatten(2)

    def _split(self, x: Tensor) -> Tensor:
        """(B, L, C) -> (B, heads, L, C / heads)."""
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)


class SpatialDMCA(nn.Module):
    """DMCA with spatial in place of channel attention: queries at full resolution, keys and values reduced.

    multi_scale=False is "SRA" (Wang et al. 2021): keys from a strided convolution, the projected value averaged to
    their size. Matches 27.0 M, 5.3 G.
    multi_scale=True is "CSA" (Shang et al. 2023): keys and values are averages at two scales, the value has no
    projection of its own. 26.0 M, 5.2 G as printed.
    """

    def __init__(
        self,
        dim: int,
        n_earlier: int,
        out_channels: int,
        *,
        sr_ratio: int,
        groups: int,
        multi_scale: bool,
        device: Device = None,
        dtype: DType = None,
    ):
        super().__init__()
        self.out_channels = out_channels
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        self.sr_ratio: int = sr_ratio
        self.multi_scale: bool = multi_scale
        self.d_norm: nn.Module = make_norm("gn", n_earlier * dim, **dd)
        self.d_proj: Chain = project_earlier(dim, n_earlier, 2 * dim, dd)
        self.q: Chain = Chain(*conv_bn(dim, dd))
        reduce = nn.Identity() if multi_scale else spatial_reduction(dim, sr_ratio, dd)
        self.k: Chain = Chain(reduce, *conv_bn(dim, dd))
        self.v: nn.Identity | Chain = nn.Identity() if multi_scale else Chain(*conv_bn(dim, dd))
        self.attention: SpatialAttention = SpatialAttention(groups)
        self.fusion: Fusion = Fusion(dim, out_channels, **dd)

    def forward(self, x: Tensor, earlier: list[Tensor]) -> Tensor:
        q = self.q(x)
        k, v = self.d_proj(self.d_norm(torch.cat(earlier, 1))).chunk(2, 1)
        if self.multi_scale:
            k, v_tokens = self.k(self._pyramid(k)), self._pyramid(v)
        else:
            k, v = self.k(k), self.v(v)
            v_tokens = F.adaptive_avg_pool2d(v, k.shape[2:])
        z = to_map(self.attention(to_tokens(q), to_tokens(k), to_tokens(v_tokens)), q)
        return self.fusion(torch.cat([q if self.sr_ratio == 1 else x, z, v], 1))

    def _pyramid(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> its averages over cells of sr_ratio and twice sr_ratio pixels, (B, C, N, 1)."""
        r = self.sr_ratio
        fine = F.avg_pool2d(x, r, ceil_mode=True) if r > 1 else x
        coarse = F.avg_pool2d(x, 2 * r, ceil_mode=True)
        return torch.cat([fine.flatten(2), coarse.flatten(2)], 2).unsqueeze(3)


class MergedTokens(nn.Module):
    """Keys and values of one earlier feature, (B, C, H, W) -> (B, h * w, 2 C): calibrated, merged, projected."""

    def __init__(self, dim: int, sr_ratio: int, *, device: Device = None, dtype: DType = None):
        super().__init__()
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        self.norm: nn.Module = make_norm("gn", dim, **dd)
        self.calibrate: nn.Parameter = nn.Parameter(torch.ones(dim, 1, 1, **dd))
        self.merge: nn.Module = spatial_reduction(dim, sr_ratio, dd)
        self.project: nn.Linear = nn.Linear(dim, 2 * dim, **dd)

    def forward(self, x: Tensor) -> Tensor:
        return self.project(to_tokens(self.merge(self.norm(x) * self.calibrate)))


class CrossAttention(nn.Module):
    """FcaFormer's spatial cross-attention ("SCA", Zhang, Hu and Wang 2023).

    Each earlier feature is calibrated by a scale per channel, merged to fewer tokens by a strided depthwise convolution
    and projected to keys and values of its own; the pixels of x attend to all tokens. The input projection then sees x
    and the result. 27.9 M, 5.2 G as printed.
    """

    def __init__(
        self,
        dim: int,
        n_earlier: int,
        out_channels: int,
        *,
        sr_ratio: int,
        groups: int,
        device: Device = None,
        dtype: DType = None,
    ):
        super().__init__()
        self.out_channels = out_channels
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        self.kv: nn.ModuleList = nn.ModuleList([MergedTokens(dim, sr_ratio, **dd) for _ in range(n_earlier)])
        self.q: nn.Linear = nn.Linear(dim, dim, **dd)
        self.attention: SpatialAttention = SpatialAttention(groups)
        self.proj: nn.Linear = nn.Linear(dim, dim, **dd)
        self.in_proj: nn.Linear = nn.Linear(2 * dim, out_channels, **dd)

    def forward(self, x: Tensor, earlier: list[Tensor]) -> Tensor:
        tokens: list[Tensor] = []
        for i, kv in enumerate(self.kv):
            tokens.append(kv(earlier[i]))
        k, v = torch.cat(tokens, 1).chunk(2, 2)
        x_BLC = to_tokens(x)
        z = self.proj(self.attention(self.q(x_BLC), k, v))
        return to_map(self.in_proj(torch.cat([x_BLC, z], 2)), x)


def make_aggregator(
    name: AggregatorName,
    dim: int,
    n_earlier: int,
    out_channels: int,
    *,
    sr_ratio: int = 1,
    groups: int = 4,
    skip: bool = True,
    learned_scale: bool = False,
    device: Device = None,
    dtype: DType = None,
) -> nn.Module:
    """The aggregator of a ganglion layer that reads `n_earlier` maps of `dim` channels.

    sr_ratio: reduction of the attention's tokens. groups: of DMCA's channels, or heads of a spatial attention.
    skip, learned_scale: of DMCA.

    Raises ValueError for an unknown name.
    """
    check_choice("aggregator", name, AggregatorName)
    dd: dict[str, Any] = {"device": device, "dtype": dtype}
    if name == "dmca":
        return DMCA(
            dim,
            n_earlier,
            out_channels,
            sr_ratio=sr_ratio,
            groups=groups,
            skip=skip,
            learned_scale=learned_scale,
            **dd,
        )
    if name == "concat":
        return Concat(dim, n_earlier, out_channels, **dd)
    if name == "no_cgca":
        return ConcatQueryValue(dim, n_earlier, out_channels, **dd)
    if name == "sca":
        return CrossAttention(dim, n_earlier, out_channels, sr_ratio=sr_ratio, groups=groups, **dd)
    return SpatialDMCA(
        dim, n_earlier, out_channels, sr_ratio=sr_ratio, groups=groups, multi_scale=name == "csa", **dd
    )
