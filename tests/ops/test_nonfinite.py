"""Infinite values and NaN reach what depends on them and nothing else, in every backend as in the reference."""

from __future__ import annotations

import dataclasses
import functools

import pytest
import torch
from torch import Tensor

from ganglion.ops import PATTERNS, cpu, scan2d, scan2d_reference

NAMES = ("x", "proj", "dt_weight", "dt_bias", "A", "D")
CROSS = PATTERNS["cross2d"]
ROUTES = {"cross": CROSS, "lines": tuple(dataclasses.replace(route, restart=True) for route in CROSS)}
RANK, PIXEL = 3, (1, 1, 2)
VALUES = (float("inf"), -float("inf"), float("nan"))


def places(channels: int, state: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Where a value is put: a tensor and an index. Parts of proj are those of routes 0 and 2."""
    second = 2 * (RANK + 2 * state)
    return {
        "x": ("x", (*PIXEL, 0)),
        "x, last channel": ("x", (*PIXEL, channels - 1)),
        "dt_low": ("proj", (*PIXEL, 0)),
        "dt_low of another route": ("proj", (*PIXEL, second + 1)),
        "B": ("proj", (*PIXEL, RANK)),
        "C": ("proj", (*PIXEL, RANK + state)),
        "dt_weight": ("dt_weight", (1, 0, 1)),
        "dt_bias": ("dt_bias", (1, channels - 1)),
        "A": ("A", (1, 0, 0)),
        "D": ("D", (1, 0)),
        "grad_y": ("grad_y", (*PIXEL, 0)),
    }


@functools.cache
def tensors(channels: int, state: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    return {
        "x": normal(2, 2, 3, channels),
        "proj": normal(2, 2, 3, 4 * (RANK + 2 * state)),
        # Of one sign, so that an infinite dt_low makes a step of zero or without end, and not always NaN.
        "dt_weight": normal(4, channels, RANK).abs(),
        "dt_bias": normal(4, channels) - 1,
        "A": -normal(4, channels, state).exp(),
        "D": normal(4, channels),
        "grad_y": normal(2, 2, 3, channels),
    }


def run(function, args: dict[str, Tensor], **kwargs) -> dict[str, Tensor]:
    leaves = [args[name].detach().clone().requires_grad_() for name in NAMES]
    y = function(*leaves, **kwargs)
    return dict(
        zip(("y", *NAMES), (y.detach(), *torch.autograd.grad(y, leaves, args["grad_y"])), strict=True)
    )


@functools.cache
def cases(routes: str, channels: int, state: int):
    """What is computed from, and what the reference makes of it."""
    found = []
    for place, (name, index) in places(channels, state).items():
        for value in VALUES:
            args = {n: t.clone() for n, t in tensors(channels, state).items()}
            args[name][index] = value
            exact = {n: t.double() for n, t in args.items()}
            found.append((f"{value} in {place}", args, run(scan2d_reference, exact, routes=ROUTES[routes])))
    return found


def check(backend: str, routes: str, channels: int, state: int) -> None:
    for case, args, expected in cases(routes, channels, state):
        for name, found in run(scan2d, args, routes=ROUTES[routes], backend=backend).items():
            finite = expected[name].isfinite()
            assert torch.equal(found.isfinite(), finite), f"{case}: {name}"
            torch.testing.assert_close(found[finite].double(), expected[name][finite], rtol=1e-4, atol=1e-5)


# 1 and 35: blocks of channels that are not full, which a sum over the channels could see.
SIZES = pytest.mark.parametrize(("channels", "state"), [(1, 1), (35, 1), (35, 2)])


@SIZES
@pytest.mark.parametrize("routes", ROUTES)
def test_torch_backend(routes, channels, state):
    check("torch", routes, channels, state)


@pytest.mark.skipif(cpu.unavailable() is not None, reason=f"no native kernels: {cpu.unavailable()}")
@pytest.mark.usefixtures("isa", "poison")
@SIZES
@pytest.mark.parametrize("routes", ROUTES)
def test_cpu_backend(routes, channels, state):
    check("cpu", routes, channels, state)


def test_a_nan_ends_with_its_line():
    """A decay of zero would take it along: zero times NaN is NaN."""
    args = {n: t.clone() for n, t in tensors(3, 1).items()}
    args["x"][0, 0, 2, 1] = torch.nan  # the last pixel of a row
    rows = ROUTES["lines"][:1] * 4
    for backend in ("torch", "no-torch"):
        y = run(scan2d, args, routes=rows, backend=backend)["y"]
        assert y[0, 0, 2, 1].isnan() and y.isnan().sum() == 1
