"""Depthwise convolutions: of channels-last maps, with native kernels on the CPU, and causal ones of sequences.

At inference a kernel computes the convolution and all that follows it, bias, residual and activation, in one pass over
memory. In training one computes the gradient of the weight, for which PyTorch takes ten times as long as for the
convolution; the rest is a convolution of PyTorch's: also the gradient of the map, with the kernel turned around.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import unknown
from . import cpu
from .operator import below_autograd, computes_only, define, is_inference_on_cpu

_ACTIVATED = {"none": lambda y: y, "silu": F.silu, "gelu": F.gelu}

#: Taps of `causal_conv1d` and its activations.
_WIDTHS = (2, 3, 4)
_ACTIVATIONS = ("silu", "swish")


def depthwise_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Depthwise convolution with stride 1 and the zero padding that keeps the size: `F.conv2d`, with faster gradients.

    x: (B, C, H, W); weight: (C, 1, K, K), K odd; bias: (C,) or None. Gradients of every order and errors are those of
    `F.conv2d`; gradients are faster in the cases that `uses_kernel` names, and the
    convolution itself in those of `depthwise_inference`, but for small ones.
    """
    # PyTorch is 1.3 times as fast at a 3x3 convolution alone with few channels in float32.
    if weight.shape[-1] > 3 or weight.shape[0] >= 128 or weight.dtype != torch.float32:
        y = depthwise_inference(x, weight, bias)
        if y is not None:
            return y
    if uses_kernel(x, weight, bias):
        conv: Any = _DepthwiseConv2d
        return conv.apply(x, weight, bias)
    return _conv2d(x, weight, bias)


def depthwise_inference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    stride: int = 1,
    residual: bool = False,
    activation: str = "none",
) -> Tensor | None:
    """activation(depthwise convolution of x + bias + x), the last term with `residual`, as one operator.

    None where PyTorch's own operations serve: where a gradient will be needed, something records or transforms the
    operations, or the kernel does not have the case. It has maps (B, C, H, W) on the CPU in channels-last memory, of
    float32, bfloat16 and float16, with a weight (C, 1, K, K) of that dtype, K of 3, 5, 7 or 9, and the padding K // 2.

    activation: "none", "silu" or "gelu". residual: only with stride 1. Inside, everything is float32.
    """
    tensors = [t for t in (x, weight, bias) if t is not None]
    if (
        not is_inference_on_cpu(*tensors)
        or x.dtype not in _INFERRED
        or any(t.dtype != x.dtype for t in tensors)
        or x.dim() != 4
        or x.numel() == 0
        or not x.is_contiguous(memory_format=torch.channels_last)
        or (size := weight.shape[-1]) not in cpu.depthwise.FORWARD_SIZES
        or weight.shape != (x.shape[1], 1, size, size)
        or cpu.unavailable() is not None
    ):
        return None
    with below_autograd():  # whose part of the operator takes as long as the kernel, for a small map
        return torch.ops.ganglion.depthwise(x, weight, bias, stride, residual, activation)


_INFERRED = (torch.float32, torch.bfloat16, torch.float16)


def _kernel(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, residual: bool, activation: str
) -> Tensor:
    form = torch.channels_last
    if x.device.type != "cpu" or x.dtype not in _INFERRED or cpu.unavailable() is not None:
        return _plain(x, weight, bias, stride, residual, activation).contiguous(memory_format=form)
    x = x.contiguous(memory_format=form)
    return cpu.depthwise.forward(x, weight, bias, stride=stride, residual=residual, activation=activation)


def _plain(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, residual: bool, activation: str
) -> Tensor:
    y = F.conv2d(x, weight, bias, stride, weight.shape[-1] // 2, groups=weight.shape[0])
    return _ACTIVATED[activation](x + y if residual else y)


def _fake(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, residual: bool, activation: str
) -> Tensor:
    size = weight.shape[-1]
    rows, cols = ((side + size // 2 * 2 - size) // stride + 1 for side in x.shape[2:])
    return x.new_empty((x.shape[0], rows, cols, x.shape[1])).permute(0, 3, 1, 2)


define(
    "depthwise",
    "(Tensor x, Tensor weight, Tensor? bias, int stride, bool residual, str activation) -> Tensor",
    tensors=3,
    kernel=_kernel,
    fake=_fake,
    plain=_plain,
    per_image=lambda axes: [0],
)


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    *,
    initial_states: Tensor | None = None,
    return_final_states: bool = False,
    seq_idx: None = None,
    final_states_out: None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Depthwise convolution of each position with those before it (Mamba, Gu and Dao 2024, section 3.4).

    The arguments are those of `causal_conv1d_fn`; positions before the first are zero, or `initial_states`.

    x: (B, D, L). weight: (D, W), W of 2 to 4. bias: (D,). initial_states: (B, D, W - 1). Of any floating dtypes.
    activation: None, or "silu" or "swish", which are the same.
    seq_idx and final_states_out, sequences packed into one and memory for the final states, are not served.

    Returns (B, D, L) in x's dtype; with return_final_states also the last W - 1 positions of x, (B, D, W - 1), as
    `initial_states` of the sequence that follows.

    Raises ValueError for shapes that do not fit and unknown activations, NotImplementedError for what is not served.
    """
    if seq_idx is not None:
        raise NotImplementedError("seq_idx is not served: convolve the packed sequences one by one")
    if final_states_out is not None:
        raise NotImplementedError("final_states_out is not served: use what return_final_states returns")
    if activation not in (None, *_ACTIVATIONS):
        raise ValueError(unknown("activation", activation, _ACTIVATIONS))
    if x.ndim != 3:
        raise ValueError(f"x has shape {tuple(x.shape)}: expected (B, D, L)")
    batch, channels, _ = x.shape
    if weight.ndim != 2 or weight.shape[0] != channels or weight.shape[1] not in _WIDTHS:
        raise ValueError(
            f"weight has shape {tuple(weight.shape)}: expected ({channels}, W), W of {_WIDTHS}, for x {tuple(x.shape)}"
        )
    before = weight.shape[1] - 1
    expected = {"bias": (bias, (channels,)), "initial_states": (initial_states, (batch, channels, before))}
    for name, (tensor, shape) in expected.items():
        if tensor is not None and tensor.shape != shape:
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)}: expected {shape} for x {tuple(x.shape)}"
            )
    padded = F.pad(x, (before, 0)) if initial_states is None else torch.cat([initial_states.to(x), x], dim=2)
    # In the precision of the weight too, if it is the higher one.
    work = torch.promote_types(x.dtype, weight.dtype)
    bias = None if bias is None else bias.to(work)
    if x.shape[2] > 0:
        y = F.conv1d(padded.to(work), weight.to(work)[:, None], bias, groups=channels)
    else:  # which conv1d refuses
        y = x.to(work) * weight.to(work)[:, :1]
    if activation is not None:
        y = F.silu(y)
    y = y.to(x.dtype)
    return (y, padded[..., padded.shape[2] - before :].clone()) if return_final_states else y


def is_depthwise(
    weight: Tensor, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int
) -> bool:
    """Whether a convolution with these arguments of `F.conv2d` is one that `depthwise_conv2d` computes.

    Never while a graph is recorded, which then has the arguments as they are.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    channels, inner, height, width = weight.shape
    return (
        groups == channels
        and inner == 1
        and height == width
        and height % 2 == 1
        and tuple(stride) == (1, 1)
        and tuple(padding) == (height // 2, height // 2)
        and tuple(dilation) == (1, 1)
    )


def uses_kernel(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether `depthwise_conv2d` differentiates with the native kernel.

    * Not while something records the operations to run or differentiate them by itself: `torch.compile`, export, FX,
      TorchScript, `torch.func`, forward-mode gradients, autocast, dispatch modes, tensor subclasses: `F.conv2d` there.
    * Only where the gradient of the weight will be needed, which is all that the kernel computes.
    * Only for float32 on the CPU, what the kernel reads, and for maps in channels-last memory, which it reads without
      a copy.
    * Only with the native library. Without, PyTorch computes the same as fast as without this file.
    """
    if not torch.is_grad_enabled() or not weight.requires_grad:
        return False
    tensors = (x, weight) if bias is None else (x, weight, bias)
    return (
        computes_only(*tensors)
        and all(t.dtype == torch.float32 and t.device.type == "cpu" for t in tensors)
        and x.dim() == 4
        and x.is_contiguous(memory_format=torch.channels_last)
        and (kernel_size := weight.shape[-1]) in cpu.depthwise.KERNEL_SIZES
        and weight.shape == (x.shape[1], 1, kernel_size, kernel_size)
        and cpu.unavailable() is None
    )


def _conv2d(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2, groups=weight.shape[0])


class _DepthwiseConv2d(torch.autograd.Function):
    """`depthwise_conv2d` of what `uses_kernel` accepts."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _conv2d(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]  of one result
        x, weight = ctx.saved_tensors
        x_needs, weight_needs, bias_needs = ctx.needs_input_grad
        channels, kernel_size = weight.shape[0], weight.shape[-1]
        # With create_graph this pass is recorded itself; it may also be vectorised over several grad_y, or compiled.
        if torch.is_grad_enabled() or not computes_only(grad_y, x, weight):
            padding = [kernel_size // 2] * 2
            mask = [x_needs, weight_needs, bias_needs]
            return torch.ops.aten.convolution_backward(
                grad_y, x, weight, [channels], [1, 1], padding, [1, 1], False, [0, 0], channels, mask
            )
        # Hooks on saved tensors may return x in other memory.
        x, grad_y = (t.contiguous(memory_format=torch.channels_last) for t in (x, grad_y))
        grad_x = _conv2d(grad_y, weight.flip(2, 3), None) if x_needs else None
        grad_weight = None
        if weight_needs:
            grad_weight = cpu.depthwise.grad_weight(
                x.permute(0, 2, 3, 1), grad_y.permute(0, 2, 3, 1), kernel_size
            )
        return grad_x, grad_weight, grad_y.sum((0, 2, 3)) if bias_needs else None
