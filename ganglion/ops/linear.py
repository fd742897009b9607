"""A linear layer with a GELU behind it, at inference on a CPU.

PyTorch's linear layer fills its result with the bias before it multiplies, and its GELU reads and writes the map once
more, at 1 to 4 ns an element. Here the product is made bare, and one pass in its own memory adds the bias and computes
the GELU.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from . import cpu
from .emulation import emulated
from .operator import below_autograd, define, is_inference_on_cpu

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
#: Elements of the result, from which the call costs less than it saves.
_LEAST = 1 << 15


def linear_gelu_inference(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor | None:
    """GELU(x @ weight.T + bias) as one operator. x: (..., C); weight: (D, C); bias: (D,) or None. Returns (..., D).

    None where PyTorch's own operations serve: off the CPU, where a gradient will be needed, something records or
    transforms the operations, the tensors are not of one dtype, float32, bfloat16 or float16, or the result is small.
    """
    tensors = [t for t in (x, weight, bias) if t is not None]
    if (
        not is_inference_on_cpu(*tensors)
        or x.dtype not in _DTYPES
        or any(t.dtype != x.dtype for t in tensors)
        or x.ndim < 2
        or x.numel() // max(x.shape[-1], 1) * weight.shape[0] < _LEAST
        or cpu.unavailable() is not None
    ):
        return None
    with below_autograd():
        return torch.ops.ganglion.linear_gelu(x, weight, bias)


def _kernel(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if x.device.type != "cpu" or x.dtype not in _DTYPES or cpu.unavailable() is not None:
        return _plain(x, weight, bias)
    rows, dtype = x.reshape(-1, x.shape[-1]), x.dtype
    if emulated(x):
        rows, weight = rows.float(), weight.float()
    hidden = torch.mm(rows, weight.t())
    return cpu.pointwise.activate(hidden, bias, "gelu", dtype).view(*x.shape[:-1], weight.shape[0])


def _plain(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.gelu(F.linear(x, weight, bias))


def _fake(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


define(
    "linear_gelu",
    "(Tensor x, Tensor weight, Tensor? bias) -> Tensor",
    tensors=3,
    kernel=_kernel,
    fake=_fake,
    plain=_plain,
    per_image=lambda axes: [0],
)
