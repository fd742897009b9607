"""`add_norm` in PyTorch's operations, on every device: what the kernels compute, and what is differentiated again."""

from __future__ import annotations

import torch
from torch import Tensor


def rejects(x: Tensor, *, channels: int) -> str | None:
    """Why this backend does not serve the call, None if it does."""
    return None


def forward(
    x: Tensor,
    add: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    shape: tuple[int, int, int],
    per_image: bool,
    eps: float,
    dtype: torch.dtype,
    total_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """y, total and statistics, see `ganglion.ops.dispatch`."""
    total = sum_of(x, add, scale, shift, total_dtype)
    work = torch.promote_types(total.dtype, torch.float32)
    axes = (1, 2) if per_image else (2,)
    var, mean = torch.var_mean(total.to(work), axes, correction=0, keepdim=True)
    y, rstd = normalised(total, mean, var, weight, bias, eps)
    return y.to(dtype), total, torch.stack([mean.flatten(), rstd.flatten()])


def sum_of(
    x: Tensor, add: Tensor | None, scale: Tensor | None, shift: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """What is normalised: x * scale + shift + add."""
    if add is None:
        return x
    work = torch.promote_types(dtype, torch.float32)
    total = x.to(work)
    if scale is not None and shift is not None:
        total = total * scale.to(work) + shift.to(work)
    return (total + add.to(work)).to(dtype)


def normalised(
    total: Tensor, mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """The normalised map in the dtype of the mean, and 1 / its standard deviation."""
    rstd = torch.rsqrt(var + eps)
    y = (total.to(mean.dtype) - mean) * rstd
    if weight is not None:
        y = y * weight.to(y.dtype)
    if bias is not None:
        y = y + bias.to(y.dtype)
    return y, rstd


def backward(
    grad_y: Tensor,
    grad_total: Tensor | None,
    total: Tensor,
    x: Tensor | None,
    scale: Tensor | None,
    weight: Tensor | None,
    statistics: Tensor,
    shape: tuple[int, int, int],
    per_image: bool,
    dtypes: tuple[torch.dtype, torch.dtype | None],
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Gradients of x, of add (None if it is that of x), and of weight, bias, scale and shift as (4, C)."""
    axes = (1, 2) if per_image else (2,)
    work = statistics.dtype
    mean, rstd = statistics.view(2, total.shape[0], 1 if per_image else total.shape[1], 1)
    hat = (total.to(work) - mean) * rstd
    grad = grad_y.to(work)
    sums = [(grad * hat).sum((0, 1)), grad.sum((0, 1))]
    if weight is not None:
        grad = grad * weight.to(work)
    grad = (grad - hat * (grad * hat).mean(axes, keepdim=True) - grad.mean(axes, keepdim=True)) * rstd
    if grad_total is not None:
        grad = grad + grad_total.to(work)
    grad_add = None
    if scale is None or x is None:
        sums += [torch.zeros_like(sums[0])] * 2
        if dtypes[1] not in (None, dtypes[0]):
            grad_add = grad.to(dtypes[1])
    else:
        sums += [(grad * x.to(work)).sum((0, 1)), grad.sum((0, 1))]
        grad_add = None if dtypes[1] is None else grad.to(dtypes[1])
        grad = grad * scale.to(work)
    return grad.to(dtypes[0]), grad_add, torch.stack(sums)
