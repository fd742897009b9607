"""`scan2d`, the fused 2-D selective scan, as a `torch.library` operator.

Routes are permutations of the pixels and the projections act on each pixel by itself, so they commute: the
operator takes the features and their low-rank projections once, in pixel order, and walks them along every
route. Neither permuted inputs nor step sizes nor per-route outputs need exist in memory.

Shape letters: B batch, H W height and width, L = H * W, D channels, K routes, R dt_rank, N d_state.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .dispatch import choose
from .operator import define
from .routes import CHUNK, Route
from .torch import scan2d as plain

_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def scan2d(
    x: Tensor,
    proj: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor | None = None,
    *,
    routes: Sequence[Route],
    backend: str = "auto",
) -> Tensor:
    """Scan an image along every route and sum the results at each pixel.

    Along route k, with dt_low, B and C the three parts of that route's slice of `proj` at the current pixel:

        dt = softplus(dt_weight[k] @ dt_low + dt_bias[k])
        h  = exp(dt * A[k]) * h + dt * B * x
        y += <C, h> + D[k] * x

    (VMamba, Liu et al. 2024, section 4.2; the published order of operations, with the pixel-wise projections
    moved before the routes.)

    x: (B, H, W, D), float32, bfloat16, float16 or float64.
    proj: (B, H, W, K * (R + 2 * N)), x's dtype; per route dt (R), then B (N), then C (N).
    dt_weight: (K, D, R). dt_bias: (K, D). A: (K, D, N), usually negative. D: (K, D) or None.
        Of any floating dtype; used in float32, or float64 when x is float64.
    routes: K routes, for example `PATTERNS["cross2d"]`.
    backend: "auto", the name of a backend to force it, or "no-<name>" to forbid it (see `backends()`).

    Returns (B, H, W, D) in x's dtype. The state is float32 (float64 for float64 inputs).

    Raises ValueError for shapes that do not fit, TypeError for dtypes that are not served or differ, and
    BackendError if a forced backend cannot serve the call.
    """
    if isinstance(routes, str):
        raise TypeError(f"routes={routes!r}: expected a sequence of Route, use pattern({routes!r})")
    work = torch.promote_types(x.dtype, torch.float32)
    y, _ = torch.ops.ganglion.scan2d(
        x,
        proj,
        dt_weight.to(work),
        dt_bias.to(work),
        A.to(work),
        None if D is None else D.to(work),
        [route.code for route in routes],
        backend,
    )
    return y


_ARGUMENTS = "Tensor x, Tensor proj, Tensor dt_weight, Tensor dt_bias, Tensor A, Tensor? D"


def _forward(
    x: Tensor,
    proj: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor | None,
    routes: Sequence[int],
    backend: str,
    size: Sequence[int] | None = None,
) -> tuple[Tensor, Tensor]:
    """`scan2d` with routes as codes. Returns y and carry (B, K * ceil(L / CHUNK) * N * D): the state of each walk
    before every CHUNK-th step.

    size: H and W, for x, proj and y as tokens, (B, L, ...). Networks call it so: of tokens, `torch.compile` keeps for
    the backward pass what is contiguous, whereas it takes H of a (B, H, W, D) for channels.
    """
    check(x, proj, dt_weight, dt_bias, A, D, routes, size)
    if x.numel() == 0:
        return _fake_forward(x, proj, dt_weight, dt_bias, A, D, routes, backend, size)
    module = choose("scan2d", x, backend, d_state=A.shape[2], dt_rank=dt_weight.shape[2])
    y, carry = module.forward(
        _map(x, size).contiguous(),
        _map(proj, size).contiguous(),
        dt_weight.contiguous(),
        dt_bias.contiguous(),
        A.contiguous(),
        None if D is None else D.contiguous(),
        routes,
    )
    return y.reshape(x.shape), carry


def _map(x: Tensor, size: Sequence[int] | None) -> Tensor:
    """x as (B, H, W, ...)."""
    return x if size is None else x.unflatten(1, size)


def _fake_forward(x, proj, dt_weight, dt_bias, A, D, routes, backend, size=None):
    check(x, proj, dt_weight, dt_bias, A, D, routes, size)
    batch, height, width, channels = _map(x, size).shape
    # One axis, as programs with dynamic sizes hold for one answer to whether an axis is 1, and ceil(L / CHUNK) may be.
    chunks = (height * width + CHUNK - 1) // CHUNK
    carry = x.new_empty((batch, chunks * (A.shape[0] * A.shape[2] * channels)), dtype=dt_weight.dtype)
    return x.new_empty(x.shape), carry


def _plain_forward(x, proj, dt_weight, dt_bias, A, D, routes, backend, size=None):
    check(x, proj, dt_weight, dt_bias, A, D, routes, size)
    y, carry = plain.forward(_map(x, size), _map(proj, size), dt_weight, dt_bias, A, D, routes)
    return y.reshape(x.shape), carry


def _backward(
    grad_y: Tensor,
    x: Tensor,
    proj: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor | None,
    carry: Tensor,
    routes: Sequence[int],
    backend: str,
    size: Sequence[int] | None = None,
) -> tuple[Tensor, ...]:
    """Gradients of x, proj, dt_weight, dt_bias, A and D (empty if D is None)."""
    if x.numel() == 0:
        grads = [torch.zeros_like(t) for t in (x, proj, dt_weight, dt_bias, A)]
        return (*grads, A.new_zeros(0 if D is None else D.shape))
    module = choose("scan2d", x, backend, d_state=A.shape[2], dt_rank=dt_weight.shape[2])
    grad_x, grad_proj, *grads, grad_D = module.backward(
        _map(grad_y.to(x.dtype), size).contiguous(),
        _map(x, size).contiguous(),
        _map(proj, size).contiguous(),
        dt_weight.contiguous(),
        dt_bias.contiguous(),
        A.contiguous(),
        None if D is None else D.contiguous(),
        carry,
        routes,
    )
    grad_D = A.new_empty(0) if grad_D is None else grad_D
    return (grad_x.reshape(x.shape), grad_proj.reshape(proj.shape), *grads, grad_D)


def _fake_backward(grad_y, x, proj, dt_weight, dt_bias, A, D, carry, routes, backend, size=None):
    grads = [t.new_empty(t.shape) for t in (x, proj, dt_weight, dt_bias, A)]
    return (*grads, A.new_empty(0 if D is None else D.shape))


def _plain_backward(grad_y, x, proj, dt_weight, dt_bias, A, D, carry, routes, backend, size=None):
    maps = _map(grad_y, size), _map(x, size), _map(proj, size)
    grads = plain.backward(*maps, dt_weight, dt_bias, A, D, carry, routes)
    grads = [A.new_zeros(0) if grad is None else grad for grad in grads]
    return (grads[0].reshape(x.shape), grads[1].reshape(proj.shape), *grads[2:])


def _gradient(grads, args, records):
    tensors, rest = args[:6], args[6:]
    *found, grad_D = torch.ops.ganglion.scan2d_backward(grads[0], *tensors, *records, *rest)
    return (*found, None if tensors[-1] is None else grad_D)


define(
    "scan2d",
    f"({_ARGUMENTS}, SymInt[] routes, str backend, SymInt[]? size=None) -> (Tensor, Tensor)",
    tensors=6,
    kernel=_forward,
    fake=_fake_forward,
    plain=_plain_forward,
    gradient=_gradient,
    records=1,
    per_image=lambda axes: (0, 1),
)
define(
    "scan2d_backward",
    f"(Tensor grad_y, {_ARGUMENTS}, Tensor carry, SymInt[] routes, str backend, SymInt[]? size=None)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    tensors=8,
    kernel=_backward,
    fake=_fake_backward,
    plain=_plain_backward,
)


def check(
    x: Tensor,
    proj: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor | None,
    routes: Sequence[int],
    size: Sequence[int] | None = None,
) -> None:
    """Raise ValueError or TypeError, naming the argument, unless the arguments of `scan2d` fit together."""
    if size is None and x.ndim != 4:
        raise ValueError(f"x has shape {tuple(x.shape)}: expected (B, H, W, D)")
    if size is not None and (len(size) != 2 or x.ndim != 3 or x.shape[1] != size[0] * size[1]):
        raise ValueError(
            f"x has shape {tuple(x.shape)}, size is {list(size)}: expected (B, H * W, D) and [H, W]"
        )
    if dt_weight.ndim != 3 or A.ndim != 3:
        raise ValueError(
            f"dt_weight has shape {tuple(dt_weight.shape)}, A {tuple(A.shape)}: expected (K, D, R) and (K, D, N)"
        )
    channels = x.shape[-1]
    n_routes, rank, state = len(routes), dt_weight.shape[2], A.shape[2]
    if n_routes == 0:
        raise ValueError("routes is empty: expected at least one Route")
    if not 0 <= min(routes) <= max(routes) < 16:
        raise ValueError(f"routes has codes {list(routes)}: expected bit fields in 0..15, see Route.code")
    if state < 1 or rank < 1:
        raise ValueError(
            f"d_state {state} (A's last axis) and dt_rank {rank} (dt_weight's) must be at least 1"
        )
    dtype, device = x.dtype, x.device
    if dtype not in _FLOATS:
        raise TypeError(f"x has dtype {dtype}: expected one of {', '.join(map(str, _FLOATS))}")
    work = torch.float64 if dtype == torch.float64 else torch.float32
    for name, tensor, shape, expected in (
        ("proj", proj, (*x.shape[:-1], n_routes * (rank + 2 * state)), dtype),
        ("dt_weight", dt_weight, (n_routes, channels, rank), work),
        ("dt_bias", dt_bias, (n_routes, channels), work),
        ("A", A, (n_routes, channels, state), work),
        ("D", D, (n_routes, channels), work),
    ):
        if tensor is None:
            continue
        if tensor.shape != shape:
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)}: expected {shape} for x {tuple(x.shape)}, "
                f"{n_routes} routes, dt_rank {rank}, d_state {state}"
            )
        if tensor.device != device:
            raise ValueError(f"{name} is on {tensor.device}, x on {device}: move them to one device")
        if tensor.dtype != expected:
            raise TypeError(f"{name} has dtype {tensor.dtype}, x {dtype}: expected {expected}")
