"""DMCA: SparX's dynamic multi-layer channel aggregator (section 3.1, Figure 3).

Where the paper and the published networks differ, this follows the networks: the softmax is taken of the scaled scores,
the value is concatenated after its projection, and where nothing is reduced the projected query replaces the input.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn

from .basic import Chain, Device, DType, make_norm, to_map, to_tokens
from .depthwise import DepthwiseConv2d, convolve_and_activate, has_hooks

torch.fx.wrap("to_map")
torch.fx.wrap("to_tokens")


class ChannelAttention(nn.Module):
    """Attention between channels, in groups: every channel of z is a mixture of the channels of v in its group.

    q, k: (B, C, h, w). v: (B, C, H, W). Returns z in parts, in order: its groups, each (B, C / groups, H, W), or all of
    it on a GPU.
    learned_scale: the scores are multiplied by a parameter instead of 1 / sqrt(h * w), as in the published detection
        networks, whose input size varies.
    """

    def __init__(
        self, groups: int, *, learned_scale: bool = False, device: Device = None, dtype: DType = None
    ):
        super().__init__()
        self.groups = groups
        # The published start: 1 / sqrt of the number of reduced pixels of an 800 x 1333 image.
        start = (800 * 1333 / 16 / 64) ** -0.5
        self.scale: nn.Parameter | None = (
            nn.Parameter(torch.full((1,), start, device=device, dtype=dtype)) if learned_scale else None
        )

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> list[Tensor]:
        return channel_attention(q, k, v, self.groups, self.scale)


@torch.fx.wrap
def channel_attention(q: Tensor, k: Tensor, v: Tensor, groups: int, scale: Tensor | None) -> list[Tensor]:
    """`ChannelAttention` as a function, whose scale is 1 / sqrt(h * w) unless given."""
    q_BLC = to_tokens(q)
    if scale is None:
        q_BLC = q_BLC * q_BLC.shape[1] ** -0.5
    else:
        q_BLC = q_BLC * scale.to(q.dtype)
    if v.is_cuda:
        return [to_map(_all_groups(q_BLC, to_tokens(k), to_tokens(v), groups), v)]
    queries = q_BLC.chunk(groups, 2)
    keys = to_tokens(k).chunk(groups, 2)
    values = to_tokens(v).chunk(groups, 2)
    z: list[Tensor] = []
    # Group by group, so that matrix products read strided views and nothing is copied.
    for g in range(groups):
        scores = torch.bmm(keys[g].mT, queries[g])  # (B, key, query)
        z.append(to_map(torch.bmm(values[g], scores.softmax(1)), v))
    return z


def _all_groups(q: Tensor, k: Tensor, v: Tensor, groups: int) -> Tensor:
    """`channel_attention` of tokens, all groups in one product with zeros between groups.

    A GPU multiplies by zeros in less time than it takes to launch a product for each group, and a compiler has a
    quarter of the graph. Batches of groups would have to be copied first.
    """
    scores = torch.bmm(k.mT, q)  # (B, key, query), of which groups on the diagonal are used
    size = scores.shape[1] // groups
    scores = scores.unflatten(1, [groups, size]).unflatten(3, [groups, size]).diagonal(0, 1, 3)
    mixing = scores.softmax(1).to(v.dtype)  # (B, key, query, group)
    mixing = torch.diag_embed(mixing, 0, 1, 3).flatten(3, 4).flatten(1, 2)
    return torch.bmm(v, mixing)


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
        device: Device = None,
        dtype: DType = None,
    ):
        super().__init__()
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        self.out_channels: int = out_channels
        self.sr_ratio: int = sr_ratio
        self.skip: bool = skip
        self.d_norm: nn.Module = make_norm("gn", n_earlier * dim, halves=True, **dd)
        self.d_proj: Chain = project_earlier(dim, n_earlier, 2 * dim, dd)
        self.q: Chain = Chain(spatial_reduction(dim, sr_ratio, dd), *conv_bn(dim, dd))
        self.k: Chain = Chain(spatial_reduction(dim, sr_ratio, dd), *conv_bn(dim, dd))
        self.v: Chain = Chain(*conv_bn(dim, dd))
        self.attention: ChannelAttention = ChannelAttention(groups, learned_scale=learned_scale, **dd)
        self.fusion: Fusion = Fusion(dim, out_channels, parts=3 if skip else 1, **dd)

    def forward(self, x: Tensor, earlier: list[Tensor]) -> Tensor:
        """x: (B, C, H, W), normalised. earlier: L maps (B, C, H, W). Returns (B, out_channels, H, W)."""
        return self.fusion(self.read(x, earlier))

    def read(self, x: Tensor, earlier: list[Tensor]) -> Tensor:
        """What the fusion is given: input, attention's result and value, (B, 3 C, H, W), or the second alone."""
        k, v = self.d_proj(self.d_norm(torch.cat(earlier, 1))).chunk(2, 1)
        q, k, v = self.q(x), self.k(k), self.v(v)
        z = self.attention(q, k, v)
        if not self.skip:
            return torch.cat(z, 1)
        return concatenate(query_unless_reduced(q, x, self.sr_ratio), z, v)


@torch.fx.wrap
def concatenate(x: Tensor, z: list[Tensor], v: Tensor) -> Tensor:
    """The channels of x, z and v."""
    return torch.cat([x] + z + [v], 1)


@torch.fx.wrap
def query_unless_reduced(q: Tensor, x: Tensor, sr_ratio: int) -> Tensor:
    """The query if it has the size of the input, else the input."""
    if sr_ratio == 1:
        return q
    # Only a single pixel cannot be reduced.
    pixels = x.shape[2] * x.shape[3]
    if not torch.jit.is_scripting():
        if torch.compiler.is_exporting():  # a branch would tie the program to sizes
            return x + (q[:, :, :1, :1] - x) * (1 // pixels)
    return q if pixels == 1 else x


class Fusion(nn.Sequential):
    """Channel shuffle, depthwise 3x3, GELU, grouped 1x1: (B, parts * C, H, W) -> (B, out_channels, H, W).

    With three parts every group sees a third of the channels of each of them. Channels of the result that three groups
    of equal size leave over are means: of all channels, or of each half of them.
    """

    def __init__(
        self, dim: int, out_channels: int, *, parts: int = 3, device: Device = None, dtype: DType = None
    ):
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        width, pad = parts * dim, out_channels % parts
        super().__init__(
            DepthwiseConv2d(width, 3, **dd),
            nn.GELU(),
            nn.Conv2d(width, out_channels - pad, 1, groups=parts, **dd),
        )
        self.parts: int = parts
        self.pad: int = pad

    def forward(self, x: Tensor) -> Tensor:
        by_tokens = False
        if not torch.jit.is_scripting():
            by_tokens = self._by_tokens(x)
        # One step a line: a map is given up as soon as the next is there.
        x = self._shuffled(x, by_tokens)
        done: Tensor | None = None
        if not torch.jit.is_scripting():
            done = convolve_and_activate(self[0], self[1], x)
        if done is None:
            x = self[0](x)
            x = to_map(self[1](to_tokens(x)), x)
        else:
            x = done
        mixed: Tensor | None = None
        if not torch.jit.is_scripting():
            mixed = self._mixed(x) if by_tokens else None
        return self._filled(self[2](x)) if mixed is None else mixed

    def _by_tokens(self, x: Tensor) -> bool:
        """Whether the groups are linear layers of tokens. On a CPU PyTorch computes a grouped 1x1 convolution in
        channels-first memory: two copies of the map, and what follows is slower there."""
        if not isinstance(x, Tensor) or x.device.type != "cpu":
            return False
        if torch.compiler.is_compiling() or torch.jit.is_tracing():
            return False
        return type(self[2]) is nn.Conv2d and not has_hooks(self[2])

    def _shuffled(self, x: Tensor, by_tokens: bool) -> Tensor:
        B, C, H, W = x.shape
        if by_tokens:
            x_BLC = to_tokens(x).unflatten(2, [C // self.parts, self.parts]).transpose(2, 3).flatten(2)
            return to_map(x_BLC, x)
        return x.reshape(B, C // self.parts, self.parts, H, W).transpose(1, 2).reshape(B, C, H, W)

    def _mixed(self, x: Tensor) -> Tensor:
        """The grouped 1x1 convolution and the channels left over."""
        conv = self[2]
        assert isinstance(conv, nn.Conv2d) and conv.bias is not None
        groups = to_tokens(x).flatten(0, 1).chunk(self.parts, 1)
        weights, biases = conv.weight.flatten(1).chunk(self.parts), conv.bias.chunk(self.parts)
        layers = zip(groups, weights, biases, strict=True)
        if torch.is_grad_enabled():
            y = self._filled(torch.cat([F.linear(*layer) for layer in layers], 1))
        else:
            y = self._in_parts([lambda layer=layer: F.linear(*layer) for layer in layers])
        return to_map(y.unflatten(0, [x.shape[0], x.shape[2] * x.shape[3]]), x)

    def _in_parts(self, parts: list[Callable[[], Tensor]]) -> Tensor:
        """`_filled` of the concatenated parts, in less memory: one part after the other is made and moved."""
        first = parts[0]()
        rows, size = first.shape
        n = size * self.parts
        y = first.new_empty(rows, n + self.pad)
        y[:, :size] = first
        del first
        for i in range(1, self.parts):
            y[:, i * size : (i + 1) * size] = parts[i]()
        for i, mean in enumerate(self._left_over(y[:, :n])):
            y[:, n + i : n + i + 1] = mean
        return y

    def _filled(self, x: Tensor) -> Tensor:
        return torch.cat([x] + self._left_over(x), 1) if self.pad > 0 else x

    def _left_over(self, x: Tensor) -> list[Tensor]:
        """The channels, axis 1, that groups of equal size leave over."""
        if self.pad == 0:
            return []
        # Not a pooling operator, which torch.export ties to sizes.
        half = (x.shape[1] + self.pad - 1) // self.pad
        halves = [x[:, :half], x[:, -half:]]
        return [part.mean(1, keepdim=True) for part in halves[: self.pad]]


def project_earlier(dim: int, n_earlier: int, out_channels: int, dd: dict[str, Any]) -> Chain:
    """(B, L * C, H, W) -> (B, out_channels, H, W): depthwise 3x3, BatchNorm, GELU, 1x1, GELU."""
    width = n_earlier * dim
    return Chain(
        DepthwiseConv2d(width, 3, bias=False, **dd),
        make_norm("bn", width, **dd),
        nn.GELU(),
        nn.Linear(width, out_channels, **dd),
        nn.GELU(),
    )


def spatial_reduction(dim: int, ratio: int, dd: dict[str, Any]) -> nn.Module:
    """A strided depthwise convolution, BatchNorm and GELU: side n becomes ceil(n / ratio)."""
    if ratio == 1:
        return nn.Identity()
    return Chain(
        nn.Conv2d(dim, dim, ratio + 1, stride=ratio, padding=(ratio + 1) // 2, groups=dim, bias=False, **dd),
        make_norm("bn", dim, **dd),
        nn.GELU(),
    )


def conv_bn(dim: int, dd: dict[str, Any]) -> tuple[nn.Module, nn.Module]:
    """A linear projection and its BatchNorm."""
    return nn.Linear(dim, dim, bias=False, **dd), make_norm("bn", dim, **dd)
