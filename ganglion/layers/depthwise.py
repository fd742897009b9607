"""Depthwise convolutions of maps, (B, C, H, W) in channels-last memory, alone and with what follows them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops.depthwise import depthwise_conv2d, depthwise_inference, is_depthwise

if TYPE_CHECKING:
    from .basic import Device, DType


def has_hooks(module: nn.Module) -> bool:
    """Whether somebody waits for the module to be called."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


class DepthwiseConv2d(nn.Conv2d):
    """Depthwise convolution that keeps the size, trained on a CPU with a native kernel."""

    def __init__(
        self,
        channels: int,
        kernel_size: int,
        *,
        bias: bool = True,
        device: Device = None,
        dtype: DType = None,
    ):
        padding = kernel_size // 2
        super().__init__(
            channels,
            channels,
            kernel_size,
            padding=padding,
            groups=channels,
            bias=bias,
            device=device,
            dtype=dtype,
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.padding_mode != "zeros":
            return self._conv_forward(x, self.weight, self.bias)
        return conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)  # pyright: ignore[reportArgumentType]  numbers, where torch allows words


class ResidualDWConv(DepthwiseConv2d):
    """x + depthwise 3x3 convolution of x."""

    def __init__(self, channels: int, *, device: Device = None, dtype: DType = None):
        super().__init__(channels, 3, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        if self.padding_mode != "zeros":
            return x + self._conv_forward(x, self.weight, self.bias)
        return residual_conv2d(x, self.weight, self.bias, self.padding, self.dilation)  # pyright: ignore[reportArgumentType]  likewise


@torch.fx.wrap
def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> Tensor:
    """`F.conv2d`, where possible with the native kernel."""
    if not torch.jit.is_scripting():
        if is_depthwise(weight, stride, padding, dilation, groups):
            return depthwise_conv2d(x, weight, bias)
    return F.conv2d(x, weight, bias, stride, padding, dilation, groups)


@torch.fx.wrap
def residual_conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None, padding: list[int], dilation: list[int]
) -> Tensor:
    """x + depthwise convolution of x by a (C, 1, 3, 3) weight.

    In float32 the sum costs nothing: it is a one in the middle of the kernel. Half precision would round that kernel.
    """
    if not torch.jit.is_scripting():
        if is_depthwise(weight, [1, 1], padding, dilation, weight.shape[0]):
            y = depthwise_inference(x, weight, bias, residual=True)
            if y is not None:
                return y
        kind = x.device.type
        # Asking other kinds of devices about autocast is an error.
        known = kind in ("cpu", "cuda", "mps", "xpu")
        if x.dtype == torch.float32 and known and not torch.is_autocast_enabled(kind):
            one = F.pad(weight.new_ones(1, 1, 1, 1), (1, 1, 1, 1))
            return conv2d(x, weight + one, bias, [1, 1], padding, dilation, weight.shape[0])
    return x + conv2d(x, weight, bias, [1, 1], padding, dilation, weight.shape[0])


_ACTIVATIONS = {nn.SiLU: "silu", nn.GELU: "gelu"}


def convolve_and_activate(
    conv: nn.Module, act: nn.Module, x: Tensor, norm: nn.BatchNorm2d | None = None
) -> Tensor | None:
    """act(norm(conv(x))) of a map (B, C, H, W), where that is one pass over memory: see `depthwise_inference`.

    None elsewhere, and where somebody waits for one of the modules to be called.
    """
    residual = type(conv) is ResidualDWConv
    if not isinstance(x, Tensor) or not (residual or type(conv) in (DepthwiseConv2d, nn.Conv2d)):
        return None
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return None
    assert isinstance(conv, nn.Conv2d)
    if type(act) not in _ACTIVATIONS or getattr(act, "approximate", "none") != "none":
        return None
    size, stride = conv.kernel_size[0], conv.stride[0]
    if (
        conv.groups != conv.in_channels
        or conv.in_channels != conv.out_channels
        or conv.kernel_size != (size, size)
        or size % 2 == 0
        or conv.stride != (stride, stride)
        or conv.padding != (size // 2, size // 2)
        or conv.dilation != (1, 1)
        or conv.padding_mode != "zeros"
        or has_hooks(conv)
        or has_hooks(act)
    ):
        return None
    weight, bias = conv.weight, conv.bias
    if norm is not None:
        mean, var = norm.running_mean, norm.running_var
        if norm.training or mean is None or var is None or residual or has_hooks(norm):
            return None
        if x.dtype != torch.float32:  # a folded kernel would be rounded
            return None
        scale = torch.rsqrt(var + norm.eps) * (1.0 if norm.weight is None else norm.weight)
        weight = weight * scale.view(-1, 1, 1, 1)
        bias = (-mean if bias is None else bias - mean) * scale
        bias = bias if norm.bias is None else bias + norm.bias
    return depthwise_inference(
        x, weight, bias, stride=stride, residual=residual, activation=_ACTIVATIONS[type(act)]
    )
