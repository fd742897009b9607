"""`selective_scan`, the 1-D recurrence of Mamba with the signature that existing code calls, as a `torch.library`
operator.

Shape letters: B batch, D channels, L positions, N d_state, G groups of channels that share B and C.
"""

from __future__ import annotations

from typing import Literal, overload

import torch
from torch import Tensor

from .dispatch import choose
from .operator import define
from .routes import CHUNK
from .torch import selective_scan as plain

_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@overload
def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: Literal[False] = False,
    initial_state: Tensor | None = None,
    *,
    backend: str = "auto",
) -> Tensor: ...
@overload
def selective_scan(
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
    initial_state: Tensor | None = None,
    *,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]: ...
def selective_scan(
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
    initial_state: Tensor | None = None,
    *,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """The 1-D selective scan (Mamba, Gu and Dao 2024, section 3.2), argument by argument as `selective_scan_fn`.

        dt = softplus(delta + delta_bias)        (the softplus only if delta_softplus)
        h  = exp(dt * A) * h + dt * B * u        (h = initial_state before the first step, zero if None)
        y  = (<C, h> + D * u) * silu(z)

    u, delta, z: (B, D, L). A: (D, N), real. D, delta_bias: (D,). initial_state: (B, D, N).
    B, C: constant (D, N), shared by all channels (B, N, L), or grouped (B, G, N, L), where channel d belongs to group
        d // (D / G).
    Each may be float32, bfloat16, float16 or float64. Sums and state are float32, or float64 if u is float64.
    backend: "auto", the name of a backend to force it, or "no-<name>" to forbid it (see `backends()`).

    Returns y (B, D, L) in u's dtype; with return_last_state also h after the last step, (B, D, N) in the state's dtype.
    Everything is differentiable, the last state too.

    Raises ValueError for shapes that do not fit and tensors on other devices, TypeError for other dtypes, among them a
    complex A, and BackendError if a forced backend cannot serve the call.
    """
    tensors = {"u": u, "delta": delta, "A": A, "B": B, "C": C, "D": D, "z": z}
    tensors |= {"delta_bias": delta_bias, "initial_state": initial_state}
    for name, tensor in tensors.items():
        if tensor is not None and tensor.dtype not in _FLOATS:
            complex_ = "; the complex scan is not served" if tensor.is_complex() else ""
            expected = ", ".join(map(str, _FLOATS))
            raise TypeError(f"{name} has dtype {tensor.dtype}: expected one of {expected}{complex_}")
    state = torch.promote_types(u.dtype, torch.float32)
    y, last_state, _ = torch.ops.ganglion.selective_scan(
        u,
        _sequence(delta, state),
        A.to(state),
        _sequence(B, state),
        _sequence(C, state),
        None if D is None else D.to(state),
        None if z is None else _sequence(z, state),
        None if delta_bias is None else delta_bias.to(state),
        None if initial_state is None else initial_state.to(state),
        delta_softplus,
        backend,
    )
    return (y, last_state) if return_last_state else y


def _sequence(tensor: Tensor, state: torch.dtype) -> Tensor:
    """A tensor of the size of u as the operator takes it: in any precision that the state has or exceeds."""
    return tensor.to(state) if torch.float64 in (tensor.dtype, state) else tensor


_ARGUMENTS = (
    "Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? delta_bias, "
    "Tensor? initial_state"
)


def _forward(u, delta, A, B, C, D, z, delta_bias, initial_state, delta_softplus, backend):
    """Returns y, the last state and carry.

    carry is that of `ganglion.ops.dispatch` with all but the batch in one dimension. The number of its states may be
    one, and a dimension of one would make a graph that was exported with a short sequence fit only short ones.
    """
    check(u, delta, A, B, C, D, z, delta_bias, initial_state)
    if u.numel() == 0:
        y, last_state, carry = _results(u, A)
        return y, last_state.zero_() if initial_state is None else last_state.copy_(initial_state), carry
    B, C = _grouped(B, C)
    module = choose("selective_scan", u, backend, d_state=A.shape[1])
    y, last_state, carry = module.forward(u, delta, A, B, C, D, z, delta_bias, initial_state, delta_softplus)
    return y, last_state, carry.flatten(1)


def _fake_forward(u, delta, A, B, C, D, z, delta_bias, initial_state, delta_softplus, backend):
    check(u, delta, A, B, C, D, z, delta_bias, initial_state)
    return _results(u, A)


def _plain_forward(u, delta, A, B, C, D, z, delta_bias, initial_state, delta_softplus, backend):
    check(u, delta, A, B, C, D, z, delta_bias, initial_state)
    B, C = _grouped(B, C)
    y, last_state, carry = plain.forward(u, delta, A, B, C, D, z, delta_bias, initial_state, delta_softplus)
    return y, last_state, carry.flatten(1)


def _backward(
    grad_y,
    grad_last_state,
    u,
    delta,
    A,
    B,
    C,
    D,
    z,
    delta_bias,
    initial_state,
    carry,
    delta_softplus,
    backend,
):
    """Gradients of u, ..., initial_state; empty for what is None."""
    tensors = (u, delta, A, B, C, D, z, delta_bias, initial_state)
    if u.numel() == 0:
        grads = [grad.zero_() for grad in _gradients(*tensors)]
        if initial_state is not None:
            grads[-1].copy_(grad_last_state)
        return tuple(grads)
    module = choose("selective_scan", u, backend, d_state=A.shape[1])
    carry = carry.unflatten(1, (-1, A.shape[1], A.shape[0]))
    return _backward_of(module, grad_y.to(u.dtype), grad_last_state, tensors, carry, delta_softplus)


def _fake_backward(grad_y, grad_last_state, u, delta, A, B, C, D, z, delta_bias, initial_state, *args):
    return tuple(_gradients(u, delta, A, B, C, D, z, delta_bias, initial_state))


def _plain_backward(grad_y, grad_last_state, *args):
    *tensors, carry, delta_softplus, _ = args
    return _backward_of(plain, grad_y, grad_last_state, tensors, carry, delta_softplus)


def _backward_of(module, grad_y, grad_last_state, tensors, carry, delta_softplus):
    """Gradients by a backend's module, which takes B and C as `_grouped` makes them."""
    u, delta, A, B, C, *rest = tensors
    grads = module.backward(
        grad_y, grad_last_state, u, delta, A, *_grouped(B, C), *rest, carry, delta_softplus
    )
    grads = [A.new_zeros(0) if grad is None else grad for grad in grads]
    grads[3], grads[4] = _ungrouped(grads[3], B), _ungrouped(grads[4], C)
    return tuple(grads)


def _gradient(grads, args, records):
    *tensors, delta_softplus, backend = args
    u, A = tensors[0], tensors[2]
    grad_y, grad_last_state = grads
    if grad_y is None:
        grad_y = torch.zeros_like(u)
    if grad_last_state is None:
        grad_last_state = A.new_zeros(*u.shape[:2], A.shape[1])
    found = torch.ops.ganglion.selective_scan_backward(
        grad_y, grad_last_state, *tensors, *records, delta_softplus, backend
    )
    return [None if t is None else grad for t, grad in zip(tensors, found, strict=True)]


def _per_image(axes):
    """u, delta, z, the first state, and B and C unless they are constant."""
    return (0, 1, *(i for i in (3, 4) if axes[i] > 2), 6, 8)


define(
    "selective_scan",
    f"({_ARGUMENTS}, bool delta_softplus, str backend) -> (Tensor, Tensor, Tensor)",
    tensors=9,
    kernel=_forward,
    fake=_fake_forward,
    plain=_plain_forward,
    gradient=_gradient,
    records=1,
    per_image=_per_image,
)
define(
    "selective_scan_backward",
    f"(Tensor grad_y, Tensor grad_last_state, {_ARGUMENTS}, Tensor carry, bool delta_softplus, str backend)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    tensors=12,
    kernel=_backward,
    fake=_fake_backward,
    plain=_plain_backward,
)


def _results(u: Tensor, A: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Memory for y, the last state and carry."""
    batch, channels, length = u.shape
    chunks = (length + CHUNK - 1) // CHUNK
    return (
        u.new_empty(u.shape),
        A.new_empty(batch, channels, A.shape[1]),
        A.new_empty(batch, chunks * A.shape[1] * channels),
    )


def _gradients(*tensors: Tensor | None) -> list[Tensor]:
    """Memory for the gradients of tensors, empty for what is None."""
    u = tensors[0]
    assert u is not None
    state = torch.promote_types(u.dtype, torch.float32)
    return [u.new_empty(0, dtype=state) if t is None else t.new_empty(t.shape) for t in tensors]


def _grouped(B: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
    """B and C, constant as they are or else as (B, G, N, L) with one G for both."""
    B, C = (t[:, None] if t.ndim == 3 else t for t in (B, C))
    if B.ndim == C.ndim == 4:
        groups = max(B.shape[1], C.shape[1])
        B, C = (t.expand(-1, groups, -1, -1) for t in (B, C))
    return B, C


def _ungrouped(grad: Tensor, like: Tensor) -> Tensor:
    """The gradient of B or C from that of what `_grouped` made of it."""
    if like.ndim != 2 and grad.shape[1] != (1 if like.ndim == 3 else like.shape[1]):
        grad = grad.sum(1, keepdim=True)
    return grad.reshape(like.shape)


def check(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    initial_state: Tensor | None,
) -> None:
    """Raise ValueError or TypeError, naming the argument, unless the arguments of the operator fit together."""
    if u.ndim != 3:
        raise ValueError(f"u has shape {tuple(u.shape)}: expected (B, D, L)")
    batch, channels, length = u.shape
    if A.ndim != 2 or A.shape[0] != channels or A.shape[1] < 1:
        raise ValueError(
            f"A has shape {tuple(A.shape)}: expected ({channels}, N) with N >= 1 for u {tuple(u.shape)}"
        )
    n = A.shape[1]
    groups_B, groups_C = (
        _check_weights(name, t, batch, channels, n, length) for name, t in (("B", B), ("C", C))
    )
    if groups_B not in (None, 1, groups_C) and groups_C not in (None, 1):
        raise ValueError(f"B has {groups_B} groups and C {groups_C}: expected the same number, or 1")
    state = torch.promote_types(u.dtype, torch.float32)
    sequences = {"delta": (delta, u.shape), "z": (z, u.shape), "B": (B, B.shape), "C": (C, C.shape)}
    parameters = {
        "A": (A, A.shape),
        "D": (D, (channels,)),
        "delta_bias": (delta_bias, (channels,)),
        "initial_state": (initial_state, (batch, channels, n)),
    }
    for name, (tensor, shape) in {**sequences, **parameters}.items():
        if tensor is None:
            continue
        if tensor.shape != shape:
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)}: expected {tuple(shape)} for u {tuple(u.shape)}, d_state {n}"
            )
        if tensor.device != u.device:
            raise ValueError(f"{name} is on {tensor.device}, u on {u.device}: move them to one device")
        if name in parameters and tensor.dtype != state:
            raise TypeError(f"{name} has dtype {tensor.dtype}: expected {state} for u {u.dtype}")
        if name in sequences and (tensor.dtype not in _FLOATS or torch.float64 in (tensor.dtype, state)):
            if tensor.dtype != state:
                raise TypeError(f"{name} has dtype {tensor.dtype}: it does not go with u {u.dtype}")
    if u.dtype not in _FLOATS:
        raise TypeError(f"u has dtype {u.dtype}: expected one of {', '.join(map(str, _FLOATS))}")


def _check_weights(name: str, B: Tensor, batch: int, channels: int, n: int, length: int) -> int | None:
    """The number of groups of B or C, None if it is constant; ValueError unless its shape fits."""
    if B.ndim == 2:
        groups, expected = None, (channels, n)
    elif B.ndim == 3:
        groups, expected = 1, (batch, n, length)
    elif B.ndim == 4:
        groups, expected = B.shape[1], (batch, B.shape[1], n, length)
    else:
        raise ValueError(
            f"{name} has shape {tuple(B.shape)}: expected ({channels}, {n}), ({batch}, {n}, {length}) or "
            f"({batch}, G, {n}, {length})"
        )
    if B.shape != expected:
        raise ValueError(f"{name} has shape {tuple(B.shape)}: expected {expected}, d_state is {n}")
    if groups is not None and (groups < 1 or channels % groups):
        raise ValueError(
            f"u has {channels} channels, {name} {groups} groups: the groups must divide the channels"
        )
    return groups
