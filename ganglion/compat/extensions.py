"""`fwd` and `bwd` as the CUDA extensions of Mamba and of VMamba's descendants define them, on any device.

x, which `fwd` returns beside the output, is (B, D, 1, 2 * N) in float32: the state after the last step lies in
x[:, :, -1, 1::2], where those extensions' callers look for it. Its other half, which only their own kernels read, is
zero: `bwd` here scans again.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from ..ops import selective_scan, selective_scan_reference


def selective_scan_fn(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
    nrows: int = 1,
    backnrows: int = -1,
) -> Tensor | tuple[Tensor, Tensor]:
    """`ganglion.ops.selective_scan`. nrows, backnrows: accepted; they tune kernels that are not here."""
    return selective_scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus, return_last_state)


def selective_scan_ref(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
    nrows: int = 1,
    backnrows: int = -1,
) -> Tensor | tuple[Tensor, Tensor]:
    """`ganglion.ops.selective_scan_reference`, a loop over positions."""
    return selective_scan_reference(u, delta, A, B, C, D, z, delta_bias, delta_softplus, return_last_state)


@torch.no_grad()
def fwd(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
) -> list[Tensor]:
    """`selective_scan_cuda.fwd`: [out, x], and out * silu(z) if there is a z."""
    out, x = _out_and_states(u, delta, A, B, C, D, delta_bias, delta_softplus)
    return [out, x] if z is None else [out, x, _gated(out, z)]


def bwd(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    dout: Tensor,
    x: Tensor | None,
    out: Tensor | None,
    dz: Tensor | None,
    delta_softplus: bool,
    recompute_out_z: bool,
) -> list[Tensor | None]:
    """`selective_scan_cuda.bwd`: [du, ddelta, dA, dB, dC, dD, ddelta_bias], dz if there is a z, which is written into
    `dz` if that is given, and out * silu(z) if `recompute_out_z`."""
    grads = _gradients(dout, u, delta, A, B, C, D, z, delta_bias, delta_softplus)
    *grads, grad_z = (*grads[:6], grads[7], grads[6])
    result = list(grads)
    if z is not None:
        assert grad_z is not None
        result.append(grad_z if dz is None else dz.copy_(grad_z))
        if recompute_out_z:
            if out is None:
                out, _ = _out_and_states(u, delta, A, B, C, D, delta_bias, delta_softplus)
            result.append(_gated(out, z))
    return result


@torch.no_grad()
def core_fwd(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    nrows: int = 1,
) -> list[Tensor]:
    """`selective_scan_cuda_core.fwd`: [out, x], out in u's dtype."""
    return list(_out_and_states(u, delta, A, B, C, D, delta_bias, delta_softplus))


@torch.no_grad()
def oflex_fwd(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    nrows: int = 1,
    out_float: bool = True,
) -> list[Tensor]:
    """`selective_scan_cuda_oflex.fwd`: [out, x], out at least in float32 if `out_float`, else in u's dtype."""
    if out_float:
        u = u.to(torch.promote_types(u.dtype, torch.float32))
    return list(_out_and_states(u, delta, A, B, C, D, delta_bias, delta_softplus))


def core_bwd(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    dout: Tensor,
    x: Tensor | None,
    delta_softplus: bool,
    nrows: int = 1,
) -> list[Tensor | None]:
    """`bwd` of the core and oflex extensions: [du, ddelta, dA, dB, dC, dD, ddelta_bias]. dout: of either dtype."""
    grads = _gradients(dout, u, delta, A, B, C, D, None, delta_bias, delta_softplus)
    return [*grads[:6], grads[7]]


def _out_and_states(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
) -> tuple[Tensor, Tensor]:
    """The output before the gate, and x."""
    out, last_state = selective_scan(u, delta, A, B, C, D, None, delta_bias, delta_softplus, True)
    x = last_state.new_zeros(*last_state.shape[:2], 1, 2 * A.shape[1])
    x[:, :, 0, 1::2] = last_state
    return out, x


def _gated(out: Tensor, z: Tensor) -> Tensor:
    work = torch.promote_types(out.dtype, torch.float32)
    return (out.to(work) * torch.nn.functional.silu(z.to(work))).to(out.dtype)


def _gradients(
    dout: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
) -> list[Tensor | None]:
    """Gradients of u, delta, A, B, C, D, z, delta_bias in their dtypes, None for what is None."""
    inputs = [
        None if t is None else t.detach().requires_grad_() for t in (u, delta, A, B, C, D, z, delta_bias)
    ]
    with torch.enable_grad():
        leaf, *others = inputs
        assert leaf is not None
        # In dout's precision, so that a float32 gradient of a half u is not rounded first.
        wide, scan = leaf.to(torch.promote_types(u.dtype, dout.dtype)), cast(Any, selective_scan)
        y = scan(wide, *others, delta_softplus)
        assert isinstance(y, Tensor)
        found = iter(torch.autograd.grad(y, [t for t in inputs if t is not None], dout.to(y.dtype)))
    return [None if t is None else next(found) for t in inputs]
