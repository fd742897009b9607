"""`scan2d`, the fused 2-D selective scan, as a `torch.library` operator.

Routes are permutations of the pixels and the projections act on each pixel by itself, so they commute: the
operator takes the features and their low-rank projections once, in pixel order, and walks them along every
route. Neither permuted inputs nor step sizes nor per-route outputs need exist in memory.

Shape letters: B batch, H W height and width, L = H * W, D channels, K routes, R dt_rank, N d_state.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .dispatch import choose
from .operator import define, is_bare, wants_grad, without_autocast
from .routes import CHUNK, Route
from .torch import scan2d as plain
from .triton import scan2d as triton_scan

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


def scan_tokens(
    x: Tensor,
    proj: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    A_log: Tensor,
    D: Tensor,
    routes: list[int],
    backend: str,
    height: int,
    width: int,
) -> Tensor:
    """`scan2d` as networks call it: of tokens (B, H * W, ...), log(-A) and routes as codes.

    On a GPU and where nothing else needs to know, it goes past PyTorch's dispatcher, for the host's time.
    """
    size = [height, width]
    parameters = (dt_weight, dt_bias, A_log, D)
    tensors = (x, proj, *parameters)
    if is_bare(*tensors) and not wants_grad(*tensors) and x.numel() > 0:
        _check_once(*map(_meta, (x, proj, *parameters)), tuple(routes), tuple(size))
        module = choose("scan2d", x, backend, d_state=A_log.shape[2], dt_rank=dt_weight.shape[2])
        if module is triton_scan:
            maps = [t.contiguous().view(t.shape[0], height, width, t.shape[2]) for t in (x, proj)]
            y, _ = module.forward(*maps, *[t.contiguous() for t in parameters], routes, log_A=True)
            return y.view(x.shape)
    return torch.ops.ganglion.scan2d(x, proj, *parameters, routes, backend, size, True)[0]


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
    log_A: bool = False,
) -> tuple[Tensor, Tensor]:
    """`scan2d` with routes as codes. Returns y and carry (B, K * ceil(L / CHUNK) * N * D): the state of each walk
    before every CHUNK-th step.

    dt_weight, dt_bias, A, D: each of any floating dtype that is not wider than the state's.
    log_A: A holds log(-A), as networks keep it: they have nothing to compute before a scan, and nothing to cast.

    size: H and W, for x, proj and y as tokens, (B, L, ...). Networks call it so: of tokens, `torch.compile` keeps for
    the backward pass what is contiguous, whereas it takes H of a (B, H, W, D) for channels.
    """
    tensors = x, proj, dt_weight, dt_bias, A, D
    metas = [None if t is None else _meta(t) for t in tensors]
    _check_once(*metas, tuple(routes), None if size is None else tuple(size))
    if x.numel() == 0:
        return _fake_forward(*tensors, routes, backend, size, log_A)
    module = choose("scan2d", x, backend, d_state=A.shape[2], dt_rank=dt_weight.shape[2])
    maps = _map(x, size).contiguous(), _map(proj, size).contiguous()
    if module.PREPARES:
        y, carry = module.forward(*maps, *map(_contiguous, tensors[2:]), routes, log_A=log_A)
    else:
        y, carry = module.forward(*maps, *map(_contiguous, _prepared(*tensors, log_A)), routes)
    return (y if size is None else y.view(x.shape)), carry


def _prepared(
    x: Tensor,
    proj: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor | None,
    log_A: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """The parameters in the state's dtype, and A itself."""
    work = _work(x.dtype)
    A = A.to(work)
    return (
        dt_weight.to(work),
        dt_bias.to(work),
        -torch.exp(A) if log_A else A,
        None if D is None else D.to(work),
    )


def _work(dtype: torch.dtype) -> torch.dtype:
    """The dtype of the state."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _contiguous(t: Tensor | None) -> Tensor | None:
    return None if t is None else t.contiguous()


def _map(x: Tensor, size: Sequence[int] | None) -> Tensor:
    """x as (B, H, W, ...)."""
    return x if size is None else x.unflatten(1, size)


def _fake_forward(x, proj, dt_weight, dt_bias, A, D, routes, backend, size=None, log_A=False):
    check(x, proj, dt_weight, dt_bias, A, D, routes, size)
    batch, height, width, channels = _map(x, size).shape
    # One axis, as programs with dynamic sizes hold for one answer to whether an axis is 1, and ceil(L / CHUNK) may be.
    chunks = (height * width + CHUNK - 1) // CHUNK
    carry = x.new_empty((batch, chunks * (A.shape[0] * A.shape[2] * channels)), dtype=_work(x.dtype))
    return x.new_empty(x.shape), carry


def _plain_forward(x, proj, dt_weight, dt_bias, A, D, routes, backend, size=None, log_A=False):
    check(x, proj, dt_weight, dt_bias, A, D, routes, size)
    ready = _prepared(x, proj, dt_weight, dt_bias, A, D, log_A)
    y, carry = plain.forward(_map(x, size), _map(proj, size), *ready, routes)
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
    log_A: bool = False,
) -> tuple[Tensor, ...]:
    """Gradients of x, proj, dt_weight, dt_bias, A (or log(-A)) and D (empty if D is None)."""
    if x.numel() == 0:
        grads = [torch.zeros_like(t) for t in (x, proj, dt_weight, dt_bias, A)]
        return (*grads, A.new_zeros(0) if D is None else torch.zeros_like(D))
    module = choose("scan2d", x, backend, d_state=A.shape[2], dt_rank=dt_weight.shape[2])
    maps = [_map(t, size).contiguous() for t in (grad_y.to(x.dtype), x, proj)]
    parameters = dt_weight, dt_bias, A, D
    if module.PREPARES:
        grads = module.backward(*maps, *map(_contiguous, parameters), carry, routes, log_A=log_A)
    else:
        ready = tuple(map(_contiguous, _prepared(x, proj, *parameters, log_A)))
        grads = _unprepared(module.backward(*maps, *ready, carry, routes), ready, parameters, log_A)
    grad_x, grad_proj, *grads, grad_D = grads
    grad_D = A.new_empty(0) if grad_D is None else grad_D
    return (grad_x.reshape(x.shape), grad_proj.reshape(proj.shape), *grads, grad_D)


def _unprepared(grads, ready, parameters, log_A) -> tuple:
    """The gradients of the parameters from those of what `_prepared` made of them."""
    grad_x, grad_proj, *grads = grads
    if log_A:
        grads[2] = grads[2] * ready[2]  # -exp is its own derivative
    grads = [None if t is None else g.to(t.dtype) for g, t in zip(grads, parameters, strict=True)]
    return (grad_x, grad_proj, *grads)


def _fake_backward(grad_y, x, proj, dt_weight, dt_bias, A, D, carry, routes, backend, size=None, log_A=False):
    grads = [t.new_empty(t.shape) for t in (x, proj, dt_weight, dt_bias, A)]
    return (*grads, A.new_empty(0) if D is None else D.new_empty(D.shape))


def _plain_backward(
    grad_y, x, proj, dt_weight, dt_bias, A, D, carry, routes, backend, size=None, log_A=False
):
    maps = _map(grad_y, size), _map(x, size), _map(proj, size)
    parameters = dt_weight, dt_bias, A, D
    ready = _prepared(x, proj, *parameters, log_A)
    grads = _unprepared(plain.backward(*maps, *ready, carry, routes), ready, parameters, log_A)
    grads = [A.new_zeros(0) if grad is None else grad for grad in grads]
    return (grads[0].reshape(x.shape), grads[1].reshape(proj.shape), *grads[2:])


def _gradient(grads, args, records):
    tensors, rest = args[:6], args[6:]
    args = (grads[0], *tensors, *records)
    # No dispatcher and no second autograd.Function where nothing but kernels is wanted.
    given = [t for t in args if t is not None]
    run = _direct_backward if is_bare(*given) and not wants_grad(*given) else _op_backward
    *found, grad_D = run(*args, *rest)
    return (*found, None if tensors[-1] is None else grad_D)


define(
    "scan2d",
    f"({_ARGUMENTS}, SymInt[] routes, str backend, SymInt[]? size=None, bool log_A=False) -> (Tensor, Tensor)",
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
    f"(Tensor grad_y, {_ARGUMENTS}, Tensor carry, SymInt[] routes, str backend, SymInt[]? size=None, bool log_A=False)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    tensors=8,
    kernel=_backward,
    fake=_fake_backward,
    plain=_plain_backward,
)


_op_backward = torch.ops.ganglion.scan2d_backward
_direct_backward = without_autocast(_backward)


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
    last = None if D is None else _meta(D)
    _check(_meta(x), _meta(proj), _meta(dt_weight), _meta(dt_bias), _meta(A), last, routes, size)


class _Meta(NamedTuple):
    """All of a tensor that `check` looks at."""

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device


def _meta(t: Tensor) -> _Meta:
    return _Meta(t.shape, t.dtype, t.device)


def _check(
    x: _Meta,
    proj: _Meta,
    dt_weight: _Meta,
    dt_bias: _Meta,
    A: _Meta,
    D: _Meta | None,
    routes: Sequence[int],
    size: Sequence[int] | None,
) -> None:
    if size is None and len(x.shape) != 4:
        raise ValueError(f"x has shape {tuple(x.shape)}: expected (B, H, W, D)")
    if size is not None and (len(size) != 2 or len(x.shape) != 3 or x.shape[1] != size[0] * size[1]):
        raise ValueError(
            f"x has shape {tuple(x.shape)}, size is {list(size)}: expected (B, H * W, D) and [H, W]"
        )
    if len(dt_weight.shape) != 3 or len(A.shape) != 3:
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
    narrower = _FLOATS if dtype == torch.float64 else _FLOATS[:3]
    for name, tensor, shape, expected in (
        ("proj", proj, (*x.shape[:-1], n_routes * (rank + 2 * state)), (dtype,)),
        ("dt_weight", dt_weight, (n_routes, channels, rank), narrower),
        ("dt_bias", dt_bias, (n_routes, channels), narrower),
        ("A", A, (n_routes, channels, state), narrower),
        ("D", D, (n_routes, channels), narrower),
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
        if tensor.dtype not in expected:
            wanted = " or ".join(map(str, expected))
            raise TypeError(f"{name} has dtype {tensor.dtype}, x {dtype}: expected {wanted}")


#: Remembered, for shapes that are numbers: in a network every call has been seen before.
_check_once = functools.lru_cache(maxsize=1024)(_check)
