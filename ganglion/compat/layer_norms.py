"""`RMSNorm`, `layer_norm_fn` and `rms_norm_fn` of `mamba_ssm.ops.triton`, through PyTorch, on any device."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def layer_norm_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None = None,
    *,
    eps: float = 1e-6,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
    is_rms_norm: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """The norm of x + residual over the last axis, in float32 at least.

    x, residual: (..., D). weight, bias: (D,). residual_in_fp32: the sum is returned in float32 where no residual says
        its dtype. is_rms_norm: without the mean.

    Returns (..., D) in x's dtype; with prenorm also x + residual, in residual's dtype, for the next block.
    """
    work = torch.promote_types(x.dtype, torch.float32)
    total = x.to(work) if residual is None else x.to(work) + residual.to(work)
    shape, weight = (x.shape[-1],), weight.to(work)
    bias = None if bias is None else bias.to(work)
    if is_rms_norm:
        y = F.rms_norm(total, shape, weight, eps)
        y = y if bias is None else y + bias
    else:
        y = F.layer_norm(total, shape, weight, bias, eps)
    if not prenorm:
        return y.to(x.dtype)
    kept = residual.dtype if residual is not None else work if residual_in_fp32 else x.dtype
    return y.to(x.dtype), total.to(kept)


def rms_norm_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None = None,
    *,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
    eps: float = 1e-6,
) -> Tensor | tuple[Tensor, Tensor]:
    """`layer_norm_fn` without the mean."""
    return layer_norm_fn(
        x,
        weight,
        bias,
        residual,
        eps=eps,
        prenorm=prenorm,
        residual_in_fp32=residual_in_fp32,
        is_rms_norm=True,
    )


class RMSNorm(nn.Module):
    """`rms_norm_fn` with a weight (hidden_size,), which begins at one, and no bias."""

    def __init__(
        self,
        hidden_size: int,
        eps: float = 1e-5,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        self.eps = eps
        self.weight: nn.Parameter = nn.Parameter(torch.ones(hidden_size, device=device, dtype=dtype))
        self.bias: None = None  # callers hand it to the functions

    def forward(
        self,
        x: Tensor,
        residual: Tensor | None = None,
        prenorm: bool = False,
        residual_in_fp32: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        return rms_norm_fn(
            x,
            self.weight,
            self.bias,
            residual,
            prenorm=prenorm,
            residual_in_fp32=residual_in_fp32,
            eps=self.eps,
        )
