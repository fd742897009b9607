"""A Mamba block between its projections, under the names by which other projects import it.

From Gu and Dao 2024, figure 3 and section 3.4: convolution, input-dependent step sizes, B and C, scan, gate.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ..ops import causal_conv1d, selective_scan


def mamba_inner_fn_no_out_proj(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    A: Tensor,
    B: Tensor | None = None,
    C: Tensor | None = None,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    B_proj_bias: Tensor | None = None,
    C_proj_bias: Tensor | None = None,
    delta_softplus: bool = True,
    checkpoint_lvl: int = 1,
) -> Tensor:
    """Convolution, scan and gate of a Mamba block, without its output projection.

    xz: (B, 2 * D, L), the convolved half first, the gate second. conv1d_weight: (D, 1, W) or (D, W).
    x_proj_weight: (R + 2 * N, D), of which B's and C's N rows are missing where these are given.
    delta_proj_weight: (D, R). A: (D, N). B, C: as `ganglion.ops.selective_scan`; from x if None.
    B_proj_bias, C_proj_bias: (N,). checkpoint_lvl: accepted; what is kept for backward is not chosen here.

    Returns (B, D, L) in xz's dtype. Raises ValueError for shapes that do not fit, TypeError for a complex A.
    """
    x, z = _convolved(xz, conv1d_weight, conv1d_bias)
    delta, B, C = _projections(x, x_proj_weight, delta_proj_weight, A, B, C, B_proj_bias, C_proj_bias)
    return selective_scan(x, delta, A, B, C, D, z, delta_bias, delta_softplus)


def mamba_inner_fn(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    A: Tensor,
    B: Tensor | None = None,
    C: Tensor | None = None,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    B_proj_bias: Tensor | None = None,
    C_proj_bias: Tensor | None = None,
    delta_softplus: bool = True,
    checkpoint_lvl: int = 1,
    b_rms_weight: Tensor | None = None,
    c_rms_weight: Tensor | None = None,
    dt_rms_weight: Tensor | None = None,
    b_c_dt_rms_eps: float = 1e-6,
) -> Tensor:
    """`mamba_inner_fn_no_out_proj`, then the output projection. Returns (B, L, d_model).

    out_proj_weight: (d_model, D). b_rms_weight, c_rms_weight: (N,), dt_rms_weight: (R,): weights of RMS norms over B, C
    and the low-rank step sizes, with `b_c_dt_rms_eps`.
    """
    x, z = _convolved(xz, conv1d_weight, conv1d_bias)
    rms_weights = (b_rms_weight, c_rms_weight, dt_rms_weight)
    delta, B, C = _projections(
        x, x_proj_weight, delta_proj_weight, A, B, C, B_proj_bias, C_proj_bias, rms_weights, b_c_dt_rms_eps
    )
    y = selective_scan(x, delta, A, B, C, D, z, delta_bias, delta_softplus)
    return F.linear(y.mT, out_proj_weight, out_proj_bias)


#: The published reference of `mamba_inner_fn` has its leading arguments and results.
mamba_inner_ref = mamba_inner_fn


def bimamba_inner_fn(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    A: Tensor,
    A_b: Tensor,
    B: Tensor | None = None,
    C: Tensor | None = None,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    B_proj_bias: Tensor | None = None,
    C_proj_bias: Tensor | None = None,
    delta_softplus: bool = True,
    checkpoint_lvl: int = 1,
) -> Tensor:
    """`mamba_inner_fn` plus a second scan, by A_b (D, N), from the end to the beginning (Vim, version 1)."""
    x, z = _convolved(xz, conv1d_weight, conv1d_bias)
    delta, B, C = _projections(x, x_proj_weight, delta_proj_weight, A, B, C, B_proj_bias, C_proj_bias)

    def turned(t: Tensor) -> Tensor:
        return t.flip(-1) if t.ndim > 2 else t  # B and C may be constant

    forwards = selective_scan(x, delta, A, B, C, D, z, delta_bias, delta_softplus)
    x, delta, B, C, z = (turned(t) for t in (x, delta, B, C, z))
    y = forwards + selective_scan(x, delta, A_b, B, C, D, z, delta_bias, delta_softplus).flip(-1)
    return F.linear(y.mT, out_proj_weight, out_proj_bias)


def _convolved(xz: Tensor, conv1d_weight: Tensor, conv1d_bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """x after its convolution, and the gate z."""
    x, z = xz.chunk(2, dim=1)
    weight = conv1d_weight.squeeze(1) if conv1d_weight.ndim == 3 else conv1d_weight
    x = causal_conv1d(x, weight, conv1d_bias, "silu")
    assert isinstance(x, Tensor)  # without final states
    return x, z


def _projections(
    x: Tensor,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    A: Tensor,
    B: Tensor | None,
    C: Tensor | None,
    B_proj_bias: Tensor | None,
    C_proj_bias: Tensor | None,
    rms_weights: tuple[Tensor | None, Tensor | None, Tensor | None] = (None, None, None),
    rms_eps: float = 1e-6,
) -> tuple[Tensor, Tensor, Tensor]:
    """delta (B, D, L), B and C of a convolved x (B, D, L)."""
    rank, state = delta_proj_weight.shape[1], A.shape[1]
    expected = rank + state * ((B is None) + (C is None))
    if x_proj_weight.shape != (expected, x.shape[1]):
        raise ValueError(
            f"x_proj_weight has shape {tuple(x_proj_weight.shape)}: expected {(expected, x.shape[1])} for rank {rank}, "
            f"d_state {state} and {x.shape[1]} channels"
        )
    proj_BLP = F.linear(x.mT, x_proj_weight)
    b_rms, c_rms, dt_rms = rms_weights
    dt_low = proj_BLP[..., :rank]
    if dt_rms is not None:
        dt_low = F.rms_norm(dt_low, (rank,), dt_rms, rms_eps)
    delta = F.linear(dt_low, delta_proj_weight).mT
    if B is None:
        B = _per_position(proj_BLP[..., rank : rank + state], B_proj_bias, b_rms, rms_eps)
    if C is None:
        C = _per_position(proj_BLP[..., -state:], C_proj_bias, c_rms, rms_eps)
    return delta, B, C


def _per_position(part_BLN: Tensor, bias: Tensor | None, rms: Tensor | None, eps: float) -> Tensor:
    if bias is not None:
        part_BLN = part_BLN + bias.to(part_BLN.dtype)
    if rms is not None:
        part_BLN = F.rms_norm(part_BLN, (part_BLN.shape[-1],), rms, eps)
    return part_BLN.mT
