"""The selective recurrence without a Python loop over positions, forward and backward, on any device.

h_t = a_t * h_{t-1} + b_t is solved by halving: neighbours are combined into a recurrence of half the length, that
one is solved, and the positions between are filled in. Work and memory are linear in the length. Nothing is divided,
so a decay that underflows to zero is as exact as any other. Every operation returns a new tensor, so that all of
PyTorch's transformations go through.

Shape letters: B batch, L positions, D channels, N d_state.
"""

from __future__ import annotations

import torch
from torch import Tensor


def linear_recurrence(a: Tensor, b: Tensor) -> Tensor:
    """h with h_t = a_t * h_{t-1} + b_t along dim 1 and h_{-1} = 0; a, b: (B, L, ...) of one shape."""
    length = b.shape[1]
    if length <= 1:
        return b
    first, second, third = slice(0, length - 1, 2), slice(1, length, 2), slice(2, length, 2)
    h_second = linear_recurrence(
        a[:, first] * a[:, second], torch.addcmul(b[:, second], a[:, second], b[:, first])
    )
    h_third = torch.addcmul(b[:, third], a[:, third], h_second[:, : (length - 1) // 2])
    h_first = torch.cat([b[:, :1], h_third], dim=1)
    pairs = torch.stack([h_first[:, : length // 2], h_second], dim=2).flatten(1, 2)
    return torch.cat([pairs, h_first[:, -1:]], dim=1) if length % 2 else pairs


def forward(
    x_BLD: Tensor,
    dt_BLD: Tensor,
    A_DN: Tensor,
    B_BLND: Tensor,
    C_BLND: Tensor,
    line: int | None = None,
    first_BND: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """y (B, L, D) and the states h (B, L, N, D).

    B and C: (B, L, N, 1), or constant (1, 1, N, D). line: the state restarts every `line` steps, which divides L; B and
    C are then not constant. first_BND: the state before the first step, zero if None.
    """
    if line is not None:
        x, dt, B, C = _lines(line, x_BLD, dt_BLD, B_BLND, C_BLND)
        y, h = forward(x, dt, A_DN, B, C)
        return y.reshape(x_BLD.shape), h.reshape(*x_BLD.shape[:2], *h.shape[2:])
    a, b = _coefficients(x_BLD, dt_BLD, A_DN, B_BLND, first_BND)
    h = linear_recurrence(a, b)
    return (C_BLND * h).sum(2), h


def backward(
    grad_y_BLD: Tensor,
    x_BLD: Tensor,
    dt_BLD: Tensor,
    A_DN: Tensor,
    B_BLND: Tensor,
    C_BLND: Tensor,
    line: int | None = None,
    first_BND: Tensor | None = None,
    grad_last_BND: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, dt, A, B, C and the state before the first step, given those of y and of the last state.

    The states are computed again. line: as in `forward`; there is then no state before the first step to speak of.
    """
    if line is not None:
        grad_y, x, dt, B, C = _lines(line, grad_y_BLD, x_BLD, dt_BLD, B_BLND, C_BLND)
        grad_x, grad_dt, grad_A, grad_B, grad_C, grad_first = backward(grad_y, x, dt, A_DN, B, C)
        grad_x, grad_dt = (grad.reshape(x_BLD.shape) for grad in (grad_x, grad_dt))
        grad_B, grad_C = (grad.reshape(B_BLND.shape) for grad in (grad_B, grad_C))
        return grad_x, grad_dt, grad_A, grad_B, grad_C, grad_first
    a, b = _coefficients(x_BLD, dt_BLD, A_DN, B_BLND, first_BND)
    h = linear_recurrence(a, b)
    grad_C = _sum_products(h, grad_y_BLD, C_BLND)
    # The adjoint state runs backwards: g_t = C_t * grad_y_t + a_{t+1} * g_{t+1}.
    a_next = torch.cat([a[:, 1:], torch.zeros_like(a[:, :1])], dim=1)
    from_y = C_BLND * grad_y_BLD[:, :, None]
    if grad_last_BND is not None:
        from_y = torch.cat([from_y[:, :-1], from_y[:, -1:] + grad_last_BND[:, None]], dim=1)
    g = linear_recurrence(a_next.flip(1), from_y.flip(1)).flip(1)
    grad_B = _sum_products(g, dt_BLD * x_BLD, B_BLND)
    grad_dtx = (g * B_BLND).sum(2)
    first = torch.zeros_like(h[:, :1]) if first_BND is None else first_BND[:, None]
    h_before = torch.cat([first, h[:, :-1]], dim=1)
    grad_log_a = g * a * h_before
    grad_A = torch.einsum("blnd,bld->dn", grad_log_a, dt_BLD)
    grad_dt = torch.einsum("blnd,dn->bld", grad_log_a, A_DN) + grad_dtx * x_BLD
    return grad_dtx * dt_BLD, grad_dt, grad_A, grad_B, grad_C, (a[:, :1] * g[:, :1]).sum(1)


def softplus_grad(v: Tensor) -> Tensor:
    """Derivative of `torch.nn.functional.softplus`, which is the identity above 20."""
    return torch.where(v > 20, torch.ones_like(v), torch.sigmoid(v))


def _coefficients(
    x_BLD: Tensor,
    dt_BLD: Tensor,
    A_DN: Tensor,
    B_BLND: Tensor,
    first_BND: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """a and b of the recurrence, (B, L, N, D): A is discretised by zero-order hold, B by Euler's rule."""
    a = torch.exp(dt_BLD[:, :, None] * A_DN.T)
    b = B_BLND * (dt_BLD * x_BLD)[:, :, None]
    # Also of no first state: a decay that is NaN or infinite shows from its step on, not from the next.
    first = 0 if first_BND is None else first_BND[:, None]
    return a, torch.cat([b[:, :1] + a[:, :1] * first, b[:, 1:]], dim=1)


def _lines(line: int, *tensors: Tensor) -> tuple[Tensor, ...]:
    """(B, L, ...) -> (B * L / line, line, ...): lines are sequences of their own, so that no NaN goes from one to the
    next, as it would through a decay of zero."""
    return tuple(t.reshape(t.shape[0] * t.shape[1] // line, line, *t.shape[2:]) for t in tensors)


def _sum_products(h_BLND: Tensor, v_BLD: Tensor, like: Tensor) -> Tensor:
    """h * v summed to the shape of B or C."""
    if like.shape[3] != 1:
        return torch.einsum("blnd,bld->nd", h_BLND, v_BLD)[None, None]
    return torch.einsum("blnd,bld->bln", h_BLND, v_BLD)[..., None].sum_to_size(like.shape)
