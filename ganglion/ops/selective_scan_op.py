"""`selective_scan`, the 1-D recurrence of Mamba with the signature that existing code calls."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from . import recurrence


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
) -> Tensor:
    """The 1-D selective scan (Mamba, Gu and Dao 2024, section 3.2), vectorised over positions.

        dt = softplus(delta + delta_bias);  h = exp(dt * A) * h + dt * B * u;  y = <C, h> + D * u

    u, delta: (B, G * D, L). A: (G * D, N). B, C: (B, G, N, L). D, delta_bias: (G * D,) or None.
    Channel g * D + d uses group g of B and C. Computed in float32, or float64 for float64 inputs.
    Returns (B, G * D, L) in u's dtype.

    Raises ValueError for shapes that do not fit.
    """
    _check(u, delta, A, B, C, D, delta_bias)
    work = torch.promote_types(u.dtype, torch.float32)
    y = _selective_scan(
        u,
        delta.to(u.dtype),
        A.to(work),
        B.to(work),
        C.to(work),
        None if delta_bias is None else delta_bias.to(work),
        delta_softplus,
    )
    if D is not None:
        y = (y.to(work) + D.to(work)[:, None] * u.to(work)).to(u.dtype)
    return y


@torch.library.custom_op("ganglion::selective_scan", mutates_args=())
def _selective_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, delta_bias: Tensor | None, delta_softplus: bool
) -> Tensor:
    y = torch.empty_like(u, memory_format=torch.contiguous_format)
    for channels, g in _groups(u, B):
        v = _step_input(delta, delta_bias, channels)
        dt = F.softplus(v) if delta_softplus else v
        x = u[:, channels].mT.to(A.dtype)
        y[:, channels] = recurrence.forward(x, dt, A[channels], B[:, g].mT, C[:, g].mT, None)[0].mT.to(
            u.dtype
        )
    return y


@_selective_scan.register_fake
def _(u, delta, A, B, C, delta_bias, delta_softplus):
    return u.new_empty(u.shape)


@torch.library.custom_op("ganglion::selective_scan_backward", mutates_args=())
def _selective_scan_backward(
    grad_y: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    delta_bias: Tensor | None,
    delta_softplus: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    grad_u, grad_delta, grad_A, grad_B, grad_C = (
        torch.zeros_like(t, memory_format=torch.contiguous_format) for t in (u, delta, A, B, C)
    )
    grad_bias = A.new_zeros(0 if delta_bias is None else len(delta_bias))
    for channels, g in _groups(u, B):
        v = _step_input(delta, delta_bias, channels)
        grads = recurrence.backward(
            grad_y[:, channels].mT.to(A.dtype),
            u[:, channels].mT.to(A.dtype),
            F.softplus(v) if delta_softplus else v,
            A[channels],
            B[:, g].mT,
            C[:, g].mT,
            None,
        )
        grad_v = grads[1] * recurrence.softplus_grad(v) if delta_softplus else grads[1]
        grad_u[:, channels] = grads[0].mT.to(u.dtype)
        grad_delta[:, channels] = grad_v.mT.to(u.dtype)
        grad_A[channels] = grads[2]
        grad_B[:, g], grad_C[:, g] = grads[3].mT, grads[4].mT
        if delta_bias is not None:
            grad_bias[channels] = grad_v.sum((0, 1))
    return grad_u, grad_delta, grad_A, grad_B, grad_C, grad_bias


@_selective_scan_backward.register_fake
def _(grad_y, u, delta, A, B, C, delta_bias, delta_softplus):
    grads = [t.new_empty(t.shape) for t in (u, delta, A, B, C)]
    return (*grads, A.new_empty(0 if delta_bias is None else delta_bias.shape))


def _setup_context(ctx, inputs, output):
    *tensors, ctx.delta_softplus = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx, grad_y):
    *grads, grad_bias = _selective_scan_backward(grad_y, *ctx.saved_tensors, ctx.delta_softplus)
    return (*grads, None if ctx.saved_tensors[-1] is None else grad_bias, None)


_selective_scan.register_autograd(_backward, setup_context=_setup_context)


def _groups(u: Tensor, B: Tensor):
    """Pairs of a group's channel slice and its index."""
    per_group = u.shape[1] // B.shape[1]
    return ((slice(g * per_group, (g + 1) * per_group), g) for g in range(B.shape[1]))


def _step_input(delta: Tensor, delta_bias: Tensor | None, channels: slice) -> Tensor:
    """delta + delta_bias of some channels, (B, L, D), in at least float32."""
    v = delta[:, channels].mT.to(torch.promote_types(delta.dtype, torch.float32))
    return v if delta_bias is None else v + delta_bias[channels]


def _check(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, delta_bias: Tensor | None
) -> None:
    if u.ndim != 3:
        raise ValueError(f"u has shape {tuple(u.shape)}: expected (B, G * D, L)")
    if A.ndim != 2 or A.shape[1] < 1:
        raise ValueError(f"A has shape {tuple(A.shape)}: expected (G * D, N) with N >= 1")
    if B.ndim != 4:
        raise ValueError(f"B has shape {tuple(B.shape)}: expected (B, G, N, L)")
    batch, channels, length = u.shape
    groups = B.shape[1]
    if groups < 1 or channels % groups:
        raise ValueError(f"u has {channels} channels, B {groups} groups: the groups must divide the channels")
    expected = {
        "delta": (delta, tuple(u.shape)),
        "A": (A, (channels, A.shape[1])),
        "B": (B, (batch, groups, A.shape[1], length)),
        "C": (C, (batch, groups, A.shape[1], length)),
        "D": (D, (channels,)),
        "delta_bias": (delta_bias, (channels,)),
    }
    for name, (tensor, shape) in expected.items():
        if tensor is None:
            continue
        if tuple(tensor.shape) != shape:
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)}: expected {shape} for u {tuple(u.shape)}"
            )
        if tensor.device != u.device:
            raise ValueError(f"{name} is on {tensor.device}, u on {u.device}: move them to one device")
