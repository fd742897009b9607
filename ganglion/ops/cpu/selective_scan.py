"""`selective_scan` by the native library."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from ..routes import CHUNK
from .library import ELEMENTS, SelectiveScan, Sequence, Weights, loaded

#: What a call holds as `Sequence`, as `Weights`, and as a pointer to float32 without gaps.
_SEQUENCES = ("u", "delta", "z")
_WEIGHTS = ("B", "C")
_PARAMETERS = ("A", "D", "delta_bias", "initial_state")
_NAMES = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias", "initial_state")


def rejects(u: Tensor, *, d_state: int) -> str | None:
    """Why this backend does not serve the call, None if it does."""
    if u.dtype not in ELEMENTS:
        return f"it computes in float32 and u is {u.dtype}"
    return None


def forward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    initial_state: Tensor | None,
    delta_softplus: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """See `ganglion.ops.dispatch`."""
    batch, channels, length = u.shape
    state = A.shape[1]
    y = u.new_empty(u.shape)
    last_state = A.new_empty(batch, channels, state)
    carry = A.new_empty(batch, -(-length // CHUNK), state, channels)
    inputs = (u, delta, A, B, C, D, z, delta_bias, initial_state)
    call, kept = _call(inputs, delta_softplus)
    call.y = _sequence(y)
    call.last_state, call.carry = last_state.data_ptr(), carry.data_ptr()
    _run("forward", call)
    del kept
    return y, last_state, carry


def backward(
    grad_y: Tensor,
    grad_last_state: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    initial_state: Tensor | None,
    carry: Tensor,
    delta_softplus: bool,
) -> tuple[Tensor | None, ...]:
    """See `ganglion.ops.dispatch`."""
    inputs = (u, delta, A, B, C, D, z, delta_bias, initial_state)
    call, kept = _call(inputs, delta_softplus)
    grads: dict[str, Tensor] = {}
    for name, tensor in zip(_NAMES, inputs, strict=True):
        if tensor is not None:
            dtype = tensor.dtype if name in _SEQUENCES else torch.float32
            grad = grads[name] = torch.empty(tensor.shape, dtype=dtype)
            setattr(call, f"grad_{name}", _sequence(grad) if name in _SEQUENCES else grad.data_ptr())
    carry, grad_last_state = carry.contiguous(), grad_last_state.contiguous()
    call.grad_y = _sequence(grad_y)
    call.carry, call.grad_last_state = carry.data_ptr(), grad_last_state.data_ptr()
    _run("backward", call)
    del kept
    return tuple(
        None if tensor is None else grads[name].to(tensor.dtype)
        for name, tensor in zip(_NAMES, inputs, strict=True)
    )


def _call(inputs: tuple[Tensor | None, ...], softplus: bool) -> tuple[SelectiveScan, list[Tensor]]:
    """The arguments of both directions, and copies that must live as long as them."""
    tensors = {name: t for name, t in zip(_NAMES, inputs, strict=True) if t is not None}
    kept = []
    for name in _WEIGHTS:
        weights = tensors[name].float()
        # Steps lie one after the other, groups and states anywhere.
        if weights.ndim == 2 or weights.stride(3) != 1:
            weights = weights.contiguous()
        tensors[name] = weights
        kept.append(weights)
    for name in _PARAMETERS:
        if name in tensors:
            tensors[name] = tensors[name].contiguous()
            kept.append(tensors[name])
    batch, channels, length = tensors["u"].shape
    call = SelectiveScan(
        batch=batch,
        channels=channels,
        length=length,
        groups=next((tensors[name].shape[1] for name in _WEIGHTS if tensors[name].ndim == 4), 1),
        state=tensors["A"].shape[1],
        softplus=softplus,
        **{name: _sequence(tensors[name]) for name in _SEQUENCES if name in tensors},
        **{name: _weights(tensors[name]) for name in _WEIGHTS},
        **{name: tensors[name].data_ptr() for name in _PARAMETERS if name in tensors},
    )
    return call, kept


def _sequence(tensor: Tensor) -> Sequence:
    return Sequence(tensor.data_ptr(), ELEMENTS[tensor.dtype], *tensor.stride())


def _weights(tensor: Tensor) -> Weights:
    if tensor.ndim == 2:
        return Weights(tensor.data_ptr(), True)
    return Weights(tensor.data_ptr(), False, *tensor.stride()[:3])


def _run(direction: str, call: SelectiveScan) -> None:
    library, isa = loaded()
    call.threads = torch.get_num_threads() if library.ganglion_scan_threaded() else 1
    workspace = torch.empty(
        library.ganglion_selective_scan_workspace(isa, ctypes.byref(call)), dtype=torch.float32
    )
    call.workspace = workspace.data_ptr()
    getattr(library, f"ganglion_selective_scan_{direction}")(isa, ctypes.byref(call))
