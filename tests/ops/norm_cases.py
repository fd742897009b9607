"""Cases of `norm` and `add_norm`, for every backend's tests."""

from __future__ import annotations

import torch
from torch import Tensor

from ganglion.ops import add_norm, norm

NAMES = ("x", "add", "scale", "shift", "weight", "bias")


def case(shape: tuple[int, int, int], form: str) -> list[Tensor | None]:
    """x, add, scale, shift, weight, bias; form: norm, bare (without weight and bias), add, scaled (with scale too)."""
    generator = torch.Generator().manual_seed(0)

    def normal(*sides: int) -> Tensor:
        return torch.randn(sides, generator=generator)

    x, add = normal(*shape) + 0.5, normal(*shape)
    scale, shift, weight, bias = (normal(shape[2]) for _ in range(4))
    return [
        x,
        add if form in ("add", "scaled") else None,
        scale if form == "scaled" else None,
        shift if form == "scaled" else None,
        None if form == "bare" else weight,
        None if form == "bare" else bias,
    ]


def exact(args: list[Tensor | None], per_image: bool, **options) -> tuple[list[Tensor], list[Tensor | None]]:
    """The results, and the gradients of all that is given, for different gradients of both results."""
    args = [None if t is None else t.detach().clone().requires_grad_() for t in args]
    x, add, scale, shift, weight, bias = args
    assert x is not None
    if add is None:
        y = total = norm(x, weight, bias, per_image=per_image, **options)
        loss = (y * wave(y)).sum()
    else:
        total, y = add_norm(x, add, weight, bias, scale=scale, shift=shift, per_image=per_image, **options)
        loss = (y * wave(y)).sum() + (total * (wave(total) - 0.3)).sum()
    given = [t for t in args if t is not None]
    grads = iter(torch.autograd.grad(loss, given))
    return [y, total], [None if t is None else next(grads) for t in args]


def wave(t: Tensor) -> Tensor:
    """A gradient of t, of numbers that every dtype has, whose sums do not cancel."""
    steps = torch.arange(t.numel(), dtype=torch.float64, device=t.device)
    return (steps.cos() + 0.5).to(torch.bfloat16).view(t.shape).to(t.dtype)


def error(found: Tensor, expected: Tensor) -> float:
    """Relative, root mean square."""
    expected = expected.double()
    scale = expected.square().mean().sqrt().clamp(min=1e-9)
    return ((found.double() - expected).square().mean().sqrt() / scale).item()
