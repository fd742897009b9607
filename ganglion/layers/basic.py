"""Norms, point-wise layers and activations on (B, C, H, W) maps in channels-last memory.

For such a map the permutation to (B, H, W, C) is a view of contiguous memory, so linear layers and layer norms run on
it as they would on tokens.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.fx
import torch.nn.functional as F
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from ..config import check_choice
from ..ops.depthwise import depthwise_conv2d, is_depthwise

Norm = Literal["ln", "bn", "gn"]
Act = Literal["silu", "gelu", "relu"]


def make_norm(kind: Norm, channels: int, *, device=None, dtype=None) -> nn.Module:
    """ "ln" LayerNorm over channels, "bn" BatchNorm, "gn" GroupNorm with one group (over C, H and W); eps 1e-5.

    Raises ValueError for another name.
    """
    check_choice("norm", kind, Norm)
    if kind == "ln":
        return LayerNorm2d(channels, eps=1e-5, device=device, dtype=dtype)
    if kind == "bn":
        return nn.BatchNorm2d(channels, device=device, dtype=dtype)
    return nn.GroupNorm(1, channels, device=device, dtype=dtype)


#: Half precisions in which this machine's matrix products on the CPU are emulated, some ten times slower than float32.
_EMULATED = tuple(
    dtype
    for dtype, supported in (
        (torch.bfloat16, torch.ops.mkldnn._is_mkldnn_bf16_supported),
        (torch.float16, torch.ops.mkldnn._is_mkldnn_fp16_supported),
    )
    if not supported()
)


@torch.fx.wrap
def emulated(x: Tensor) -> bool:
    """Whether matrix products of x are emulated on its device."""
    return x.device.type == "cpu" and x.dtype in _EMULATED


@torch.fx.wrap
def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x @ weight.T + bias in x's dtype, computed in float32 where the CPU would only emulate x's dtype."""
    if not torch.jit.is_scripting():
        if emulated(x) and weight.dtype == x.dtype:
            return F.linear(x.float(), weight.float(), None if bias is None else bias.float()).to(x.dtype)
    return F.linear(x, weight, bias)


@torch.fx.wrap
def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    groups: int,
) -> Tensor:
    """2-D convolution in x's dtype, computed in float32 where the CPU would only emulate x's dtype."""
    if not torch.jit.is_scripting():
        if emulated(x) and weight.dtype == x.dtype:
            bias = None if bias is None else bias.float()
            y = F.conv2d(x.float(), weight.float(), bias, stride, padding, groups=groups)
            return y.to(x.dtype)
        if is_depthwise(weight, stride, padding, groups):
            return depthwise_conv2d(x, weight, bias)
    return F.conv2d(x, weight, bias, stride, padding, groups=groups)


class Linear(nn.Linear):
    """`nn.Linear` through `linear`."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


class Conv2d(nn.Conv2d):
    """`nn.Conv2d` with zero padding, through `conv2d`."""

    def forward(self, x: Tensor) -> Tensor:
        return conv2d(x, self.weight, self.bias, self.stride, self.padding, self.groups)  # pyright: ignore


class GELU2d(nn.GELU):
    """GELU of a map in channels-last memory, shown to PyTorch as contiguous: its CPU kernel is then twice as fast."""

    def forward(self, input: Tensor) -> Tensor:
        return F.gelu(input.permute(0, 2, 3, 1), approximate=self.approximate).permute(0, 3, 1, 2)


_ACTS: dict[str, type[nn.Module]] = {"silu": nn.SiLU, "gelu": GELU2d, "relu": nn.ReLU}


def make_act(name: Act) -> nn.Module:
    """The activation of a map. Raises ValueError for an unknown name."""
    check_choice("activation", name, Act)
    return _ACTS[name]()


class ResidualDWConv(nn.Conv2d):
    """x + depthwise 3x3 convolution of x."""

    def __init__(self, channels: int, *, device=None, dtype=None):
        super().__init__(channels, channels, 3, padding=1, groups=channels, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        return residual_depthwise(x, self.weight, self.bias)


@torch.fx.wrap
def residual_depthwise(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x + depthwise convolution of x by a (C, 1, 3, 3) weight.

    In float32 the sum costs nothing: it is a one in the middle of the kernel. Half precision would round that kernel.
    """
    if not torch.jit.is_scripting():
        kind = x.device.type
        # Asking other kinds of devices about autocast is an error.
        known = kind in ("cpu", "cuda", "mps", "xpu")
        if x.dtype == torch.float32 and known and not torch.is_autocast_enabled(kind):
            one = F.pad(weight.new_ones(1, 1, 1, 1), (1, 1, 1, 1))
            return conv2d(x, weight + one, bias, [1, 1], [1, 1], weight.shape[0])
    return x + conv2d(x, weight, bias, [1, 1], [1, 1], weight.shape[0])


class Linear2d(nn.Linear):
    """A linear layer over the channels of (B, C, H, W): a 1x1 convolution with a (out, in) weight."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x.permute(0, 2, 3, 1), self.weight, self.bias).permute(0, 3, 1, 2)


class Projection(Linear2d):
    """The input projection of a mixer in a normal layer: of all features it reads only the current one."""

    def forward(self, x: Tensor, earlier: list[Tensor]) -> Tensor:
        return linear(x.permute(0, 2, 3, 1), self.weight, self.bias).permute(0, 3, 1, 2)


def check_in_proj(in_proj: nn.Module, channels: int) -> nn.Module:
    """`in_proj`, after checking that it says to return what its mixer expects.

    A module that replaces a mixer's input projection is called with (x, earlier) and has an attribute `out_channels`.

    Raises TypeError without that attribute and ValueError if it is not `channels`.
    """
    found = getattr(in_proj, "out_channels", None)
    if found is None:
        raise TypeError(
            f"in_proj {type(in_proj).__name__} has no attribute out_channels: expected {channels} there"
        )
    if found != channels:
        raise ValueError(f"in_proj returns {found} channels, expected {channels}")
    return in_proj


class ConvNorm(nn.Module):
    """Convolution, norm and, if asked for, an activation."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int,
        padding: int,
        norm: Norm,
        bias: bool = True,
        act: bool = False,
        device=None,
        dtype=None,
    ):
        super().__init__()
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        self.conv = Conv2d(
            in_channels, out_channels, kernel_size, stride=stride, padding=padding, bias=bias, **dd
        )
        self.norm = make_norm(norm, out_channels, **dd)
        self.act = GELU2d() if act else nn.Identity()
        self.unpadded = 0 if padding else kernel_size

    def forward(self, x: Tensor) -> Tensor:
        if self.unpadded > 0:
            x = at_least(x, self.unpadded)
        return self.act(self.norm(self.conv(x)))


@torch.fx.wrap
def at_least(x: Tensor, side: int) -> Tensor:
    """x, after checking that neither of its sides is shorter than `side`."""
    if x.shape[2] < side or x.shape[3] < side:
        raise ValueError(f"a map of {x.shape[2]} x {x.shape[3]}: this layer needs at least {side} x {side}")
    return x


class PatchMerging(nn.Module):
    """Swin's downsampling: the four pixels of each 2x2 patch are concatenated, normalised and projected.

    An odd side is padded with one row or column of zeros at its end. (B, C, H, W) -> (B, D, ceil(H/2), ceil(W/2)).
    """

    def __init__(self, in_channels: int, out_channels: int, *, norm: Norm, device=None, dtype=None):
        super().__init__()
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        self.norm = make_norm(norm, 4 * in_channels, **dd)
        self.reduction = Linear2d(4 * in_channels, out_channels, bias=False, **dd)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x.permute(0, 2, 3, 1), (0, 0, 0, x.shape[3] % 2, 0, x.shape[2] % 2))
        B, H, W, C = x.shape
        # (B, H/2, row, W/2, column, C) -> patches ordered column first, as the published weights expect.
        x = x.reshape(B, H // 2, 2, W // 2, 2, C).permute(0, 1, 3, 4, 2, 5).reshape(B, H // 2, W // 2, 4 * C)
        return self.reduction(self.norm(x.permute(0, 3, 1, 2)))
