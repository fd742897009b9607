"""LayerNorm and GroupNorm with one group of channels-last maps, with the sum before them in the same pass.

PyTorch gives each row of a LayerNorm a block of its own on a GPU, however few channels it has, and returns the result
of a GroupNorm in another memory format. Under autocast both return float32, which the next layer casts. Here a map is
read once and written once, several pixels at a time, in the dtype that is wanted.

Shape letters: B batch, L pixels, C channels.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .dispatch import check_request, choose
from .operator import define, is_bare, untransformed, wants_grad
from .torch import add_norm as plain

_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
#: Where kernels are faster than PyTorch's.
_DEVICES = ("cuda", "xpu")


def norm(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    eps: float = 1e-5,
    per_image: bool = False,
    dtype: torch.dtype | None = None,
    backend: str = "auto",
) -> Tensor:
    """Normalise each pixel over its channels (LayerNorm), or each image over pixels and channels (GroupNorm(1, C)).

    x: (B, L, C), float32, bfloat16, float16 or float64, for example the tokens of a channels-last map. weight, bias:
        (C,), of any floating dtype.
    per_image: one mean and deviation an image instead of one a pixel.
    dtype: of the result, x's if None. Inside, everything is float32 (float64 for float64).
    backend: "auto", the name of a backend to force it, or "no-<name>" to forbid it (see `backends()`).

    Returns (B, L, C). Every transformation of PyTorch and gradients of every order are served; what records or
    transforms operations (`torch.compile`, export, `torch.func`) sees PyTorch's own.

    Raises ValueError for shapes that do not fit, TypeError for dtypes that are not served, and BackendError if a
    forced backend cannot serve the call.
    """
    return _run(x, None, None, None, weight, bias, per_image, eps, dtype, backend)[0]


def add_norm(
    x: Tensor,
    add: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    eps: float = 1e-5,
    per_image: bool = False,
    dtype: torch.dtype | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """`norm` of a residual sum: total = x * scale + shift + add, and the norm of that.

    x, add: (B, L, C), each of any floating dtype. scale, shift: (C,), both or none: SparX's affine map of the identity
    path (section 3.1). dtype: of the normalised map, the sum's if None. The rest as for `norm`.

    Returns (total, normalised): (B, L, C) each, total in the wider dtype of x and add, rounded once.

    Raises what `norm` raises.
    """
    y, total = _run(x, add, scale, shift, weight, bias, per_image, eps, dtype, backend)
    return total, y


def uses_kernel(x: Tensor, *others: Tensor | None) -> bool:
    """Whether `norm` and `add_norm` of these tensors are an operator of their own, and not some of PyTorch's.

    Not while something records the operations to run or transforms them by itself, so that a compiler can fuse a norm
    with its neighbours; and on a GPU only.
    """
    if not isinstance(x, Tensor) or x.device.type not in _DEVICES:
        return False
    return untransformed(x, *[t for t in others if t is not None])


def norm_map(
    x: Tensor,
    add: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    *,
    eps: float,
    per_image: bool,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor] | None:
    """The normalised map and what was normalised, of maps (B, C, H, W) in channels-last memory, for networks.

    Without views and, where nothing else needs to know, past PyTorch's dispatcher: for a few images the host's time is
    all of it. None where `uses_kernel` says so.
    """
    rows = (scale, shift, weight, bias)
    given = [t for t in (x, add, *rows) if t is not None]
    bare = is_bare(*given)
    if not bare and not uses_kernel(*given):
        return None
    if x.shape != (x if add is None else add).shape or any(
        t is not None and (t.ndim != 1 or t.shape[0] != x.shape[1] or t.device != x.device) for t in rows
    ):  # an error that names what is wrong
        _check(_as_tokens(x), _as_tokens(add), *rows)
    return _compute((x, add, *rows), given, bare, per_image, eps, dtype, "auto")


def _compute(
    tensors: tuple[Any, ...],
    given: list[Tensor],
    bare: bool,
    per_image: bool,
    eps: float,
    dtype: torch.dtype,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """What is normalised by the operator, and what that was: tokens, or maps in channels-last memory.

    given: those of `tensors` that are not None. bare: see `is_bare`.
    """
    x: Tensor = tensors[0]
    add: Tensor | None = tensors[1]
    args: tuple[Any, ...] = (*tensors, per_image, eps, dtype, backend)
    if wants_grad(*given):
        function: Any = _AddNorm
        y, total = function.apply(*args, bare)
    elif bare:
        y, total, _ = _forward(*args)
    else:
        y, total, _ = torch.ops.ganglion.add_norm(*args)
    return y, x if add is None else total


def _run(
    x: Tensor,
    add: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    per_image: bool,
    eps: float,
    dtype: torch.dtype | None,
    backend: str,
) -> tuple[Tensor, Tensor]:
    """The normalised tokens, and what was normalised."""
    check_request(backend)
    _check(x, add, scale, shift, weight, bias)
    total_dtype = x.dtype if add is None else torch.promote_types(x.dtype, add.dtype)
    dtype = total_dtype if dtype is None else dtype
    tensors = (x, add, scale, shift, weight, bias)
    given = [t for t in tensors if t is not None]
    forced = backend in ("triton", "cpu")  # those that have kernels
    if not ((forced and untransformed(*given)) or uses_kernel(*given)):
        total = plain.sum_of(x, add, scale, shift, total_dtype)
        return _torch_norm(total, weight, bias, per_image, eps).to(dtype), total
    return _compute(tensors, given, is_bare(*given), per_image, eps, dtype, backend)


def _torch_norm(
    total: Tensor, weight: Tensor | None, bias: Tensor | None, per_image: bool, eps: float
) -> Tensor:
    if per_image:
        return F.group_norm(total.transpose(1, 2), 1, weight, bias, eps).transpose(1, 2)
    return F.layer_norm(total, total.shape[2:], weight, bias, eps)


def _check(x: Tensor, add: Tensor | None, *rows: Tensor | None) -> None:
    if x.ndim != 3:
        raise ValueError(f"x has shape {tuple(x.shape)}: expected (B, L, C)")
    if x.dtype not in _FLOATS:
        raise TypeError(f"x has dtype {x.dtype}: expected one of {', '.join(map(str, _FLOATS))}")
    if add is not None and add.shape != x.shape:
        raise ValueError(f"add has shape {tuple(add.shape)}: expected {tuple(x.shape)}, as x")
    for name, row in zip(("scale", "shift", "weight", "bias"), rows, strict=True):
        if row is not None and row.shape != x.shape[2:]:
            raise ValueError(
                f"{name} has shape {tuple(row.shape)}: expected ({x.shape[2]},) for x {tuple(x.shape)}"
            )
    if (rows[0] is None) != (rows[1] is None):
        raise ValueError("scale and shift belong together: give both or none")
    for name, t in zip(("add", "scale", "shift", "weight", "bias"), (add, *rows), strict=True):
        if t is not None and t.device != x.device:
            raise ValueError(f"{name} is on {t.device}, x on {x.device}: move them to one device")


class _AddNorm(torch.autograd.Function):
    """The operator and its gradient."""

    @staticmethod
    def forward(ctx: Any, x, add, scale, shift, weight, bias, per_image, eps, dtype, backend, bare):
        run = _forward if bare else torch.ops.ganglion.add_norm
        tensors = (x, add, scale, shift, weight, bias)
        y, total, statistics = run(*tensors, per_image, eps, dtype, backend)
        kept = x if add is None else total
        ctx.save_for_backward(kept, x if scale is not None else None, scale, weight, statistics)
        ctx.set_materialize_grads(False)
        ctx.dtypes = (x.dtype, None if add is None else add.dtype)
        ctx.parameters = [None if t is None else t.dtype for t in (weight, bias, scale, shift)]
        ctx.rest = per_image, eps, backend
        return y, total

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor | None, grad_total: Tensor | None):  # pyright: ignore[reportIncompatibleMethodOverride]  of two results
        total, x, scale, weight, statistics = ctx.saved_tensors
        per_image, eps, backend = ctx.rest
        has_add = ctx.dtypes[1] is not None
        grad_total = grad_total if has_add else None
        grad_y = torch.zeros_like(total) if grad_y is None else grad_y
        args: tuple[Any, ...] = (grad_y, grad_total, total, x, scale, weight, statistics, per_image)
        args += ctx.dtypes
        maps = [t for t in (grad_y, grad_total, total, x) if t is not None]
        if not torch.is_grad_enabled() and is_bare(*maps):
            grad_x, grad_add, sums = _backward(*args, backend=backend)
        elif torch.is_grad_enabled() or not untransformed(*maps):
            # To be differentiated once more, or for several gradients at once.
            grad_x, grad_add, sums = _plain_backward(*args, eps=eps)
        else:
            grad_x, grad_add, sums = torch.ops.ganglion.add_norm_backward(*args, backend)
        if grad_add is None or grad_add.numel() != total.numel():
            grad_add = grad_x
        rows = [
            None if dtype is None else sums[i] if sums.dtype == dtype else sums[i].to(dtype)
            for i, dtype in enumerate(ctx.parameters)
        ]
        return (
            grad_x,
            grad_add if has_add else None,
            rows[2],
            rows[3],
            rows[0],
            rows[1],
            *[None] * 5,
        )


def _sizes(x: Tensor) -> tuple[int, int, int]:
    """(B, L, C) of tokens or a map."""
    if x.ndim == 3:
        return x.shape[0], x.shape[1], x.shape[2]
    return x.shape[0], x.shape[2] * x.shape[3], x.shape[1]


def _dense(t: Any) -> Any:
    """In memory, channels after channels."""
    if t is None:
        return None
    return t.contiguous(memory_format=torch.channels_last if t.ndim == 4 else torch.contiguous_format)


def _like(x: Tensor, dtype: torch.dtype) -> Tensor:
    form = torch.channels_last if x.ndim == 4 else torch.contiguous_format
    return torch.empty_like(x, dtype=dtype, memory_format=form)


def _as_tokens(t: Any) -> Any:
    return t if t is None or t.ndim < 4 else t.permute(0, 2, 3, 1).flatten(1, 2)


def _as(t: Tensor, x: Tensor) -> Tensor:
    """Tokens in the form of x."""
    return t if x.ndim == 3 or t.ndim != 3 else t.unflatten(1, x.shape[2:]).permute(0, 3, 1, 2)


def _forward(x, add, scale, shift, weight, bias, per_image, eps, dtype, backend):
    """y, total (empty if nothing is added) and statistics."""
    total_dtype = x.dtype if add is None else torch.promote_types(x.dtype, add.dtype)
    if x.numel() == 0:
        return _fake_forward(x, add, scale, shift, weight, bias, per_image, eps, dtype, backend)
    sizes = _sizes(x)
    module = choose("add_norm", x, backend, channels=sizes[2])
    rows = (scale, shift, weight, bias)
    if module is plain:
        tokens = _as_tokens(x), _as_tokens(add)
        y, total, statistics = plain.forward(*tokens, *rows, sizes, per_image, eps, dtype, total_dtype)
        y, total = _dense(_as(y, x)), _dense(_as(total, x))
    else:
        rows = [None if t is None else t.contiguous() for t in rows]
        maps = _dense(x), _dense(add)
        y, total, statistics = module.forward(*maps, *rows, sizes, per_image, eps, dtype, total_dtype)
    return y, x.new_empty(0) if add is None else total, statistics


def _fake_forward(x, add, scale, shift, weight, bias, per_image, eps, dtype, backend):
    total = x.new_empty(0)
    if add is not None:
        total = _like(x, torch.promote_types(x.dtype, add.dtype))
    batch, length, _ = _sizes(x)
    work = torch.promote_types(x.dtype, torch.float32)
    statistics = x.new_empty((2, batch if per_image else batch * length), dtype=work)
    return _like(x, dtype), total, statistics


def _backward(
    grad_y, grad_total, total, x, scale, weight, statistics, per_image, x_dtype, add_dtype, backend
):
    """Gradients of x, of add (empty if it is that of x), and (4, C) of weight, bias, scale and shift."""
    args = (grad_y, grad_total, total, x, scale, weight, statistics, per_image, x_dtype, add_dtype)
    if total.numel() == 0:
        fake = _fake_backward(*args, backend)
        return (*fake[:2], fake[2].zero_())
    module = choose("add_norm", total, backend, channels=_sizes(total)[2])
    if module is plain:
        grad_x, grad_add, sums = _plain_backward(*args, eps=None)
        return _dense(grad_x), _dense(grad_add), sums
    maps = [_dense(t) for t in (grad_y, grad_total, total, x)]
    rows = [None if t is None else t.contiguous() for t in (scale, weight)]
    sizes = _sizes(total)
    found = module.backward(*maps, *rows, statistics, sizes, per_image, (x_dtype, add_dtype))
    return found[0], total.new_empty(0) if found[1] is None else found[1], found[2]


def _plain_backward(
    grad_y, grad_total, total, x, scale, weight, statistics, per_image, x_dtype, add_dtype, eps
):
    """`_backward` in PyTorch's operations; with eps, of the statistics too, to be differentiated."""
    if eps is not None:
        work, axes = torch.promote_types(total.dtype, torch.float32), (1, 2) if per_image else (2,)
        var, mean = torch.var_mean(_as_tokens(total).to(work), axes, correction=0)
        statistics = torch.stack([mean.flatten(), torch.rsqrt(var + eps).flatten()])
    grad_x, grad_add, sums = plain.backward(
        _as_tokens(grad_y),
        _as_tokens(grad_total),
        _as_tokens(total),
        _as_tokens(x),
        scale,
        weight,
        statistics,
        _sizes(total),
        per_image,
        (x_dtype, add_dtype),
    )
    return _as(grad_x, total), total.new_empty(0) if grad_add is None else _as(grad_add, total), sums


def _fake_backward(
    grad_y, grad_total, total, x, scale, weight, statistics, per_image, x_dtype, add_dtype, backend
):
    grad_add = total.new_empty(0)
    if add_dtype is not None and (scale is not None or add_dtype != x_dtype):
        grad_add = _like(total, add_dtype)
    return _like(total, x_dtype), grad_add, statistics.new_empty((4, _sizes(total)[2]))


define(
    "add_norm",
    "(Tensor x, Tensor? add, Tensor? scale, Tensor? shift, Tensor? weight, Tensor? bias, bool per_image,"
    " float eps, ScalarType dtype, str backend) -> (Tensor, Tensor, Tensor)",
    kernel=_forward,
    fake=_fake_forward,
)
define(
    "add_norm_backward",
    "(Tensor grad_y, Tensor? grad_total, Tensor total, Tensor? x, Tensor? scale, Tensor? weight,"
    " Tensor statistics, bool per_image, ScalarType x_dtype, ScalarType? add_dtype, str backend)"
    " -> (Tensor, Tensor, Tensor)",
    kernel=_backward,
    fake=_fake_backward,
)
