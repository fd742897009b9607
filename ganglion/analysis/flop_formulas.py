"""Multiply-accumulates of operators for which torch has no formula: this library's, norms, and means of maps."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import flop_registry, register_flop_formula

from .. import ops  # noqa: F401 - registers the operators that are given formulas here
from ..ops import linear  # noqa: F401 - likewise

aten: Any = torch.ops.aten


def missing_formulas() -> list[str]:
    """Operators of this library without a FLOP formula."""
    every = torch._C._dispatch_get_all_op_names()
    names = {name.split(".")[0].split("::")[1] for name in every if name.startswith("ganglion::")}
    return sorted(name for name in names if getattr(torch.ops.ganglion, name) not in flop_registry)


def _scan_macs(pixels: int, channels: int, d_state: int) -> int:
    return pixels * channels * (9 * d_state + 1)


# torch's registry counts two per multiply-accumulate. A backward pass counts as two forward ones, as for a
# convolution; what an operator recomputes in it does not count.


@register_flop_formula(torch.ops.ganglion.scan2d)
def _scan2d_flop(x, proj, dt_weight, dt_bias, A, D, routes, *args, out_shape=None, **kwargs) -> int:
    *axes, channels = x
    n_routes, _, rank = dt_weight
    pixels = math.prod(axes) * n_routes
    return 2 * (_scan_macs(pixels, channels, A[2]) + pixels * channels * rank)


@register_flop_formula(torch.ops.ganglion.scan2d_backward)
def _scan2d_backward_flop(grad_y, *args, out_shape=None, **kwargs) -> int:
    return 2 * _scan2d_flop(*args)


@register_flop_formula(torch.ops.ganglion.selective_scan)
def _selective_scan_flop(u, delta, A, *args, out_shape=None, **kwargs) -> int:
    batch, channels, length = u
    return 2 * _scan_macs(batch * length, channels, A[1])


@register_flop_formula(torch.ops.ganglion.selective_scan_backward)
def _selective_scan_backward_flop(grad_y, grad_last_state, *args, out_shape=None, **kwargs) -> int:
    return 2 * _selective_scan_flop(*args)


@register_flop_formula([torch.ops.ganglion.add_norm, torch.ops.ganglion.add_norm_backward])
def _add_norm_flop(*args, out_shape=None, **kwargs) -> int:
    """As of PyTorch's own norms, which its counter leaves out."""
    return 0


@register_flop_formula(torch.ops.ganglion.depthwise)
def _depthwise_flop(x, weight, *args, out_shape: tuple[int, ...], **kwargs) -> int:
    """As of the convolution that it is; bias, residual and activation are not counted there either."""
    return 2 * math.prod(out_shape) * math.prod(weight[1:])


@register_flop_formula(torch.ops.ganglion.linear_gelu)
def _linear_gelu_flop(x, weight, *args, out_shape=None, **kwargs) -> int:
    """As of the product that it is; bias and activation are not counted there either."""
    return 2 * math.prod(x) * weight[0]


def _norm(weight_index: int, plain: int, affine: int) -> Callable[..., int]:
    def count(args: tuple, out: Any) -> int:
        weight = args[weight_index] if len(args) > weight_index else None
        return args[0].numel() * (plain if weight is None else affine)

    return count


def _mean(args: tuple, out: Any) -> int:
    """Average pooling reaches the dispatcher as the mean over two axes of a map."""
    x, dims = args[0], args[1] if len(args) > 1 else None
    return x.numel() if x.ndim == 4 and dims is not None and len(dims) == 2 else 0


def _whole(args: tuple, out: Any) -> int:
    return args[0].numel()


def _made(each: int) -> Callable[..., int]:
    return lambda args, out: each * out.numel()


#: Formulas in multiply-accumulates of what torch's registry leaves out, called with arguments and output.
FORMULAS: dict[Any, Callable[[tuple[Any, ...], Any], int]] = {
    torch.ops.ganglion.add_norm: _norm(4, 4, 5),
    aten.native_layer_norm: _norm(2, 4, 5),
    aten.native_group_norm: _norm(1, 4, 5),
    aten.native_batch_norm: _norm(1, 1, 2),
    aten._native_batch_norm_legit_no_training: _norm(1, 1, 2),
    aten.cudnn_batch_norm: _norm(1, 1, 2),
    aten._adaptive_avg_pool2d: _whole,
    aten.avg_pool2d: _whole,
    aten.mean: _mean,
    aten.upsample_bilinear2d: _made(4),
    aten.upsample_nearest2d: _made(1),
}


def _norm_output(args: tuple) -> Any:
    x = args[0]
    return torch.empty_like(x), x.new_empty(0), x.new_empty(0)


#: Outputs on meta tensors at inference, without statistics. PyTorch works these out in Python, which takes half of the
#: whole count.
OUTPUTS: dict[Any, Callable[[tuple[Any, ...]], Any]] = {
    aten.gelu: lambda args: torch.empty_like(args[0]),
    aten.silu: lambda args: torch.empty_like(args[0]),
    aten.native_layer_norm: _norm_output,
    aten.native_group_norm: _norm_output,
    aten.native_batch_norm: _norm_output,
    aten._native_batch_norm_legit_no_training: _norm_output,
}
