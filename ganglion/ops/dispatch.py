"""Which implementation serves a call of an operator: the one place where a backend is chosen.

A backend is a package with

    DEVICES                        device types it serves, None for every device
    unavailable() -> str | None    why it cannot run on this machine, None if it can

and a module for every operator that it has, named as the operator. The module of `scan2d` has

    rejects(x, *, d_state, dt_rank) -> str | None    why it does not serve this call, None if it does
    forward(x, proj, dt_weight, dt_bias, A, D, routes) -> (y, carry)
    backward(grad_y, x, proj, dt_weight, dt_bias, A, D, carry, routes)
        -> (grad_x, grad_proj, grad_dt_weight, grad_dt_bias, grad_A, grad_D or None)

with the shapes and dtypes of `ganglion.ops.scan2d`. If PREPARES of the module is true, both also take a keyword log_A,
which says that A is log(-A), and the parameters are of any floating dtype, as are their gradients; else they are given,
and give, the state's dtype. carry is (B, K * ceil(L / CHUNK) * N * D), the state of each walk
before every CHUNK-th step. The module of `selective_scan` has

    rejects(u, *, d_state) -> str | None
    forward(u, delta, A, B, C, D, z, delta_bias, initial_state, delta_softplus) -> (y, last_state, carry)
    backward(grad_y, grad_last_state, u, delta, A, B, C, D, z, delta_bias, initial_state, carry, delta_softplus)
        -> the gradients of u, ..., initial_state, each in its tensor's dtype; None for tensors that are None

with the shapes and dtypes of `ganglion.ops.selective_scan`, of any strides and none empty. B and C are constant (D, N)
or grouped (B, G, N, L), with one G for both. A, D, delta_bias, the states and their gradients have the state's dtype:
float64 if u has it, and then everything does, else float32. carry (B, ceil(L / CHUNK), N, D) is the state before every
CHUNK-th step (`ganglion.ops.routes`).

The module of `add_norm`, which is optional, has

    rejects(x, *, channels) -> str | None
    forward(x, add, scale, shift, weight, bias, shape, per_image, eps, dtype, total_dtype) -> (y, total, statistics)
    backward(grad_y, grad_total, total, x, scale, weight, statistics, shape, per_image, (dtype of x, of add or None))
        -> (grad_x, grad_add or None where it is grad_x, (4, C) of weight, bias, scale and shift)

of tokens with the shape (B, L, C), or, all but the torch backend's, of maps (B, C, H, W) in channels-last memory, whose
shape as tokens that is. statistics: means and 1 / standard deviations, (2, one for each pixel or image).

Backends compute the same function; they differ in speed.
"""

from __future__ import annotations

import functools
import os
import warnings
from dataclasses import dataclass
from types import ModuleType

from torch import Tensor

from ..errors import unknown
from . import cpu, torch, triton

#: From fast to slow; the first that is available and accepts the call serves it.
BACKENDS: dict[str, ModuleType] = {"triton": triton, "cpu": cpu, "torch": torch}

ENV = "GANGLION_BACKEND"
#: Modules of the first backend, by all that a choice looks at. A network has a few dozen calls.
_served_by_first: dict[tuple, ModuleType] = {}
_REMEMBERED = 4096
_CHOICES = ("auto", *BACKENDS, *(f"no-{name}" for name in BACKENDS))


class BackendError(RuntimeError):
    """A backend was forced, or all were forbidden, and the call cannot be served."""


@dataclass(frozen=True, kw_only=True)
class BackendStatus:
    """One row of `backends()`: `reason` says why a backend is not available, empty if it is."""

    name: str
    available: bool
    reason: str


def backends() -> list[BackendStatus]:
    """Every backend of the scan from fast to slow, available or why not."""
    found = {name: module.unavailable() for name, module in BACKENDS.items()}
    return [BackendStatus(name=n, available=why is None, reason=why or "") for n, why in found.items()]


def check_request(request: str, source: str = "backend") -> None:
    """Raise ValueError, naming where the request comes from, unless `choose` knows it."""
    if request not in _CHOICES:
        raise ValueError(f"{source}: " + unknown("backend", request, _CHOICES))


def choose(operator: str, x: Tensor, request: str = "auto", **sizes: int) -> ModuleType:
    """The backend's module that serves this call of an operator.

    request: "auto", a backend's name to force it, or "no-<name>" to forbid one. "auto" gives way to the
    environment variable GANGLION_BACKEND, which takes the same values.
    sizes: what else `rejects` of the operator's modules takes.

    Raises ValueError for an unknown request and BackendError if no permitted backend serves the call.
    """
    source = "backend"
    if request == "auto":
        request, source = os.environ.get(ENV, "auto"), ENV
    # The fastest backend's answer is remembered: on a GPU a call must not wait for the host.
    key = (operator, request, x.dtype, x.shape, x.device, triton.unavailable, *sizes.values())
    if key in _served_by_first:
        return _served_by_first[key]
    check_request(request, source)
    forced = request in BACKENDS
    refusals: dict[str, str] = {}
    for name, backend in BACKENDS.items():
        if request == f"no-{name}" or (forced and name != request):
            continue
        module = getattr(backend, operator, None)
        if module is None:
            if forced:
                refusals[name] = f"it has no {operator}"
            continue
        if backend.DEVICES is not None and x.device.type not in backend.DEVICES:
            if forced:
                refusals[name] = f"it serves {', '.join(backend.DEVICES)} tensors"
            continue
        why = backend.unavailable() or module.rejects(x, **sizes)
        if why is None:
            for refused, reason in refusals.items():
                _announce(operator, name, refused, reason)
            if backend is triton:
                if len(_served_by_first) >= _REMEMBERED:
                    _served_by_first.clear()
                _served_by_first[key] = module
            return module
        refusals[name] = why
    told = "; ".join(f"{name}: {why}" for name, why in refusals.items()) or "none is permitted"
    raise BackendError(f"no backend serves {operator} on {x.device} with {source}={request!r} ({told})")


@functools.cache
def _announce(operator: str, served: str, refused: str, reason: str) -> None:
    warnings.warn(
        f"ganglion: {operator} runs on the slower backend {served!r} because of {refused!r}: {reason}. "
        f"Set {ENV}={refused} to make this an error.",
        RuntimeWarning,
        stacklevel=2,
    )
