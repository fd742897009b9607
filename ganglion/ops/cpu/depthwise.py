"""Depthwise convolutions by the native library: with all that follows them, and the gradient of the weight."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from ...errors import unknown
from .library import ACTIVATIONS, ELEMENTS, Convolution, Depthwise, address, loaded, threads

#: Kernel sizes that were compiled in.
KERNEL_SIZES = (1, 3, 5, 7, 9)
FORWARD_SIZES = (3, 5, 7, 9)


def grad_weight(x: Tensor, grad_y: Tensor, kernel_size: int) -> Tensor:
    """Gradient (C, 1, K, K) of the weight of a depthwise convolution with stride 1 and padding K // 2.

    x and grad_y: (B, H, W, C), contiguous, float32.

    Raises RuntimeError if the backend is unavailable and ValueError for tensors or a kernel size of other kinds.
    """
    library, isa = loaded()
    for name, t in {"x": x, "grad_y": grad_y}.items():
        if t.dtype != torch.float32 or t.device.type != "cpu" or not t.is_contiguous() or t.dim() != 4:
            raise ValueError(
                f"{name} is {t.dtype}, {tuple(t.shape)} with strides {t.stride()} on {t.device}: "
                "expected contiguous float32 (B, H, W, C) on the CPU"
            )
    if x.shape != grad_y.shape:
        raise ValueError(f"x is {tuple(x.shape)} and grad_y {tuple(grad_y.shape)}: expected the same shape")
    if kernel_size not in KERNEL_SIZES:
        raise ValueError(unknown("kernel size", kernel_size, map(str, KERNEL_SIZES)))
    batch, height, width, channels = x.shape
    if not x.numel():
        return x.new_zeros(channels, 1, kernel_size, kernel_size)
    grad = x.new_empty(channels, 1, kernel_size, kernel_size)
    call = Depthwise(
        batch=batch,
        height=height,
        width=width,
        channels=channels,
        kernel=kernel_size,
        threads=threads(library),
        x=x.data_ptr(),
        grad_y=grad_y.data_ptr(),
        grad_weight=grad.data_ptr(),
    )
    workspace = x.new_empty(library.ganglion_depthwise_workspace(ctypes.byref(call)))
    call.workspace = workspace.data_ptr()
    library.ganglion_depthwise_grad_weight(isa, ctypes.byref(call))
    return grad


def forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, *, stride: int, residual: bool, activation: str
) -> Tensor:
    """activation(depthwise convolution of x + bias + x), the last term with `residual`, in one pass over memory.

    x: (B, C, H, W) in channels-last memory, float32, bfloat16 or float16, not empty. weight: (C, 1, K, K), K one of
    `FORWARD_SIZES`; bias: (C,) or None; of any floating dtypes: everything is computed in float32. The padding is
    K // 2.
    activation: one of `library.ACTIVATIONS`. Returns a map in x's dtype and in channels-last memory.

    Raises RuntimeError if the backend is unavailable. The rest is the caller's to check.
    """
    library, isa = loaded()
    batch, channels, height, width = x.shape
    kernel, padding = weight.shape[-1], weight.shape[-1] // 2
    weight = weight.float().contiguous()
    bias = None if bias is None else bias.float().contiguous()
    rows, cols = ((side + 2 * padding - kernel) // stride + 1 for side in (height, width))
    y = x.new_empty((batch, rows, cols, channels)).permute(0, 3, 1, 2)
    call = Convolution(
        batch=batch,
        height=height,
        width=width,
        channels=channels,
        kernel=kernel,
        stride=stride,
        padding=padding,
        residual=residual,
        activation=ACTIVATIONS[activation],
        element=ELEMENTS[x.dtype],
        threads=threads(library),
        x=x.data_ptr(),
        weight=weight.data_ptr(),
        bias=address(bias),
        y=y.data_ptr(),
    )
    workspace = x.new_empty(library.ganglion_convolution_workspace(ctypes.byref(call)), dtype=torch.float32)
    call.workspace = workspace.data_ptr()
    library.ganglion_convolution_forward(isa, ctypes.byref(call))
    return y
