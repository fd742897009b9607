"""How an operator is told to PyTorch: one mechanism, after which it stands under every transformation.

Kernels compute values and nothing else. What PyTorch transforms is derived from two things: the operator's gradient,
which is an operator of the same make with kernels of its own, and its *plain form*, the same function in PyTorch's own
operations, each of which returns a new tensor.

    values                              kernels
    reverse mode                        kernels: the gradient operator
    reverse mode, again and again       the plain form of the gradient operator, differentiated by PyTorch
    forward mode                        the plain form, computed with dual numbers
    vmap                                kernels: the images of all examples as one batch, or one call per example

`torch.func` stacks these: each of its levels reaches the operator as one of them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._functorch import is_legacy_batchedtensor
from torch._functorch.utils import enable_single_level_autograd_function
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd import forward_ad

_LIBRARY = torch.library.Library("ganglion", "FRAGMENT")

#: A context in which operators are called without what differentiates them.
below_autograd = torch._C._AutoDispatchBelowAutograd

#: What an operator returns: a tensor if its schema says so, and else a tuple of them.
Results = Tensor | tuple[Tensor, ...]


_BARE = (Tensor, nn.Parameter)
_PLAIN = (*_BARE, FakeTensor)
_GPUS = ("cuda", "xpu")


def untransformed(*tensors: Tensor) -> bool:
    """Whether an operation on these tensors computes, or only infers shapes: nothing records it to run it later
    (`torch.compile`, export, FX, TorchScript), or transforms it (`torch.func`, forward mode, tensor subclasses)."""
    if _recorded_or_transformed():
        return False
    return all(type(t) in _PLAIN and not is_legacy_batchedtensor(t) for t in tensors)


def is_bare(*tensors: Tensor) -> bool:
    """Whether kernels may be called on these directly: they have memory on a GPU, and nothing of PyTorch's watches but
    autograd. CPU tensors take the dispatcher's way, as what they cost there is little beside the kernels."""
    if _recorded_or_transformed():
        return False
    if torch._C._len_torch_dispatch_stack() > 0 or torch._C._len_torch_function_stack() > 0:
        return False
    for t in tensors:
        if type(t) not in _BARE or is_legacy_batchedtensor(t):
            return False
    return tensors[0].device.type in _GPUS


def wants_grad(*tensors: Tensor) -> bool:
    """Whether autograd would record an operation on these."""
    return torch.is_grad_enabled() and any(t.requires_grad for t in tensors)


def computes_only(*tensors: Tensor) -> bool:
    """Whether an operation on these CPU tensors does nothing but compute on their memory: neither autocast nor a mode
    changes or sees it, and `untransformed`."""
    return (
        untransformed(*tensors)
        and torch._C._len_torch_dispatch_stack() == 0
        and not torch.is_autocast_enabled("cpu")
    )


def is_inference_on_cpu(*tensors: Tensor) -> bool:
    """Whether a kernel without a gradient may compute on these: they are on the CPU, and no gradient is wanted."""
    return (
        all(isinstance(t, Tensor) and t.device.type == "cpu" for t in tensors)
        and not wants_grad(*tensors)
        and computes_only(*tensors)
    )


def _recorded_or_transformed() -> bool:
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
    )


def define(
    name: str,
    signature: str,
    *,
    tensors: int = 0,
    kernel: Callable[..., Results],
    fake: Callable[..., Results],
    plain: Callable[..., Results] | None = None,
    gradient: Callable[..., Sequence[Tensor | None]] | None = None,
    records: int = 0,
    per_image: Callable[[Sequence[int]], Sequence[int]] | None = None,
) -> None:
    """Define the operator `ganglion::<name>`, which returns a tensor or a tuple of tensors, as its signature says.

    signature: arguments and results in PyTorch's schema language. The first `tensors` arguments are tensors or None.
    kernel, fake, plain: the function by kernels, for shapes only, and in plain form; all with the same arguments.
        Without a plain form the operator computes and no more: what calls it sees to derivatives and transformations.
    gradient: `gradient(grads, args, records)` returns the gradients of the tensors among `args`; `grads` are those of
        the results, None for zero. If it is None, the plain form is differentiated.
    records: how many of the last results exist for `gradient` only, and have no derivative.
    per_image: from the number of axes of each tensor (0 for None), the tensors whose first axis counts images, if every
        result's does too. None if images are summed.
    """
    _LIBRARY.define(name + signature, tags=torch.Tag.pt2_compliant_tag)
    kernel = without_autocast(kernel)
    _LIBRARY.impl(name, kernel, "CompositeExplicitAutograd")
    torch.library.register_fake(f"ganglion::{name}", fake, lib=_LIBRARY)
    if plain is None:
        return
    op = getattr(torch.ops.ganglion, name).default
    _LIBRARY.impl(name, _autograd(op, tensors, kernel, plain, gradient, records), "Autograd")
    torch.library.register_vmap(f"ganglion::{name}", _vmap(op, tensors, per_image), lib=_LIBRARY)


def _as_tuple(found: Results) -> tuple[Tensor, ...]:
    return found if isinstance(found, tuple) else (found,)


def without_autocast(function: Callable) -> Callable:
    """`function`, whose first argument is a tensor, with products of matrices in the dtype of their operands."""

    def wrapped(x: Tensor, *args: Any, **kwargs: Any) -> Any:
        device = x.device.type
        if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
            return function(x, *args, **kwargs)
        torch.set_autocast_enabled(device, False)
        try:
            return function(x, *args, **kwargs)
        finally:
            torch.set_autocast_enabled(device, True)

    return wrapped


def _autograd(
    op: Any,
    tensors: int,
    kernel: Callable[..., Results],
    plain: Callable[..., Results],
    gradient: Callable | None,
    records: int,
) -> Callable[..., Results]:
    """What serves `op` where PyTorch differentiates.

    Also where nothing needs a derivative: only autograd.Function can tell whether a tensor has a tangent.
    """
    results = len(op._schema.returns) - records
    pull_back = without_autocast(functools.partial(_pull_back, plain, tensors))
    plain = without_autocast(plain)

    def forward(ctx: Any, *args: Any) -> Results:
        if torch._C._are_functorch_transforms_active():
            # autograd.Function switches derivatives off, which is meant for this level and not for those below.
            with torch.enable_grad(), forward_ad._set_fwd_grad_enabled(True), below_autograd():
                found = op(*args)
        elif is_bare(*[t for t in args[:tensors] if t is not None]):
            found = kernel(*args)
        else:
            with below_autograd():
                found = op(*args)
        kept = _as_tuple(found)[results:]
        ctx.save_for_backward(*args[:tensors], *kept)
        ctx.save_for_forward(*args[:tensors])
        ctx.mark_non_differentiable(*kept)
        ctx.set_materialize_grads(False)
        ctx.rest = args[tensors:]
        return found

    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        if all(grad is None for grad in grads):
            return (None,) * len(ctx.needs_input_grad)
        saved = ctx.saved_tensors
        args = saved[:tensors] + ctx.rest
        if gradient is not None:
            found = gradient(grads[:results], args, saved[tensors:])
        else:
            found = pull_back(*args, wanted=ctx.needs_input_grad, grads=grads)
        return (*found, *(None,) * len(ctx.rest))

    def jvp(ctx: Any, *tangents: Tensor | None) -> tuple[Tensor | None, ...]:
        # The saved arguments still have their tangents, which are those of level 0: PyTorch has no other.
        with forward_ad._set_fwd_grad_enabled(True):
            found = _as_tuple(plain(*ctx.saved_tensors, *ctx.rest))[:results]
            found = [forward_ad.unpack_dual(t, level=0) for t in found]
        moved = (torch.zeros_like(t.primal) if t.tangent is None else t.tangent for t in found)
        return (*moved, *(None,) * records)

    members = {"forward": forward, "backward": backward, "jvp": jvp}
    members = {name: staticmethod(function) for name, function in members.items()}
    rule: Any = type(op._opname, (torch.autograd.Function,), members)
    rule_at_level: Any = type(op._opname, (torch.autograd.function._SingleLevelFunction,), members)

    def autograd(*args: Any) -> Results:
        if not torch._C._are_functorch_transforms_active():
            return rule.apply(*args)
        # The level that asks is that of the tensors. autograd.Function by itself would start again with all of them.
        with enable_single_level_autograd_function():
            return rule_at_level.apply(*args)

    return autograd


def _pull_back(
    plain: Callable[..., Results],
    tensors: int,
    *args: Any,
    wanted: Sequence[bool],
    grads: Sequence[Tensor | None],
) -> list[Tensor | None]:
    """Gradients of the wanted tensors by differentiating the plain form."""
    positions = [i for i in range(tensors) if wanted[i]]

    def function(*changed: Tensor) -> tuple[Tensor, ...]:
        everything = list(args)
        for i, tensor in zip(positions, changed, strict=True):
            everything[i] = tensor
        return _as_tuple(plain(*everything))

    results, pull, *_ = torch.func.vjp(function, *(args[i] for i in positions))
    pulled = pull(tuple(torch.zeros_like(r) if g is None else g for r, g in zip(results, grads, strict=True)))
    found: list[Tensor | None] = [None] * tensors
    for i, grad in zip(positions, pulled, strict=True):
        found[i] = grad
    return found


def _vmap(op: Any, tensors: int, per_image: Callable[[Sequence[int]], Sequence[int]] | None) -> Callable:
    """The batching rule of `op`, see `torch.library.register_vmap`."""

    def rule(info: Any, in_dims: Sequence[int | None], *args: Any) -> tuple[Results, int | tuple[int, ...]]:
        examples = info.batch_size
        mapped = {i: dim for i, dim in enumerate(in_dims[:tensors]) if dim is not None}
        axes = [0 if args[i] is None else args[i].ndim - (i in mapped) for i in range(tensors)]
        images = [] if per_image is None else [i for i in per_image(axes) if args[i] is not None]
        if mapped.keys() <= set(images):
            every = [
                args[i].movedim(mapped[i], 0) if i in mapped else args[i].expand(examples, *args[i].shape)
                for i in images
            ]
            changed = {i: t.flatten(0, 1) for i, t in zip(images, every, strict=True)}
            results = _as_tuple(op(*(changed.get(i, arg) for i, arg in enumerate(args))))
            found = tuple(r.unflatten(0, every[0].shape[:2]) for r in results)
        else:
            each = [
                _as_tuple(
                    op(*(arg.select(mapped[i], k) if i in mapped else arg for i, arg in enumerate(args)))
                )
                for k in range(examples)
            ]
            found = tuple(torch.stack(r) for r in zip(*each, strict=True))
        return (found[0], 0) if len(op._schema.returns) == 1 else (found, (0,) * len(found))

    return rule
