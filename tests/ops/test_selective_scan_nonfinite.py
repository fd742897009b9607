"""Infinite values and NaN in the 1-D scan reach what depends on them and nothing else, as in the reference."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor

from ganglion.ops import cpu, selective_scan, selective_scan_reference
from tests.ops.test_selective_scan import exact, inputs

VALUES = (float("inf"), -float("inf"), float("nan"))
#: Blocks of channels that are not full, which a sum over the channels could see, and one that is; the last chunk of
#: steps is full in none.
SIZES = {
    "one_channel": {"channels": 1, "state": 1, "length": 9},
    "few_channels": {"channels": 5, "state": 2, "length": 9},
    "more_than_a_block": {"channels": 19, "state": 3, "length": 21},
    "whole_blocks": {"channels": 16, "state": 2, "length": 17},
    "constant": {"channels": 5, "state": 2, "length": 9, "B": "constant", "C": "constant"},
    "without_gate": {"channels": 5, "state": 2, "length": 9, "without": ("z", "initial_state")},
}


def run(scan, args: dict[str, Tensor], grads: tuple[Tensor, ...], **kwargs) -> dict[str, Tensor]:
    results = scan(**args, delta_softplus=True, return_last_state=True, **kwargs)
    grads = tuple(g.to(r.dtype) for g, r in zip(grads, results, strict=True))
    found = torch.autograd.grad(results, list(args.values()), grads)
    y, last_state = (r.detach() for r in results)
    return {"y": y, "last_state": last_state, **dict(zip(args, found, strict=True))}


@functools.cache
def cases(size: str):
    """What is computed from, and what the reference makes of it: a value in the middle of every tensor."""
    args = {
        name: t.detach() for name, t in inputs(batch=2, groups=1, dtype=torch.float32, **SIZES[size]).items()
    }
    generator = torch.Generator().manual_seed(1)
    u, A = args["u"], args["A"]
    shapes = {"grad_y": u.shape, "grad_last_state": (*u.shape[:2], A.shape[1])}
    args |= {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    found = []
    for place in args:
        for value in VALUES:
            here = {name: t.clone() for name, t in args.items()}
            here[place].view(-1)[here[place].numel() // 2] = value
            grads = tuple(here.pop(name) for name in shapes)
            leaves = {name: t.requires_grad_() for name, t in here.items()}
            expected = run(selective_scan_reference, exact(leaves), grads)
            found.append((f"{value} in {place}", leaves, grads, expected))
    return found


def check(backend: str, size: str) -> None:
    for case in cases(size):
        compare(backend, *case)


def compare(backend: str, case: str, args, grads, expected) -> None:
    for name, found in run(selective_scan, args, grads, backend=backend).items():
        finite = expected[name].isfinite()
        assert torch.equal(found.isfinite(), finite), f"{case}: {name}"
        torch.testing.assert_close(found[finite].double(), expected[name][finite], rtol=1e-4, atol=1e-4)


def check_sums(backend: str) -> None:
    """An infinite B or C times a channel that does not exist is NaN, and enters no sum over channels."""
    args = inputs(
        batch=1, groups=1, channels=1, length=9, without=("z", "D", "initial_state"), dtype=torch.float32
    )
    args = {name: t.detach() if name == "A" else t.detach().abs() for name, t in args.items()}
    grads = (torch.ones(1, 1, 9), torch.zeros(1, 1, 2))
    for place, other in (("B", "C"), ("C", "B")):
        here = {name: t.clone() for name, t in args.items()}
        here[place][0, 0, 0, 4] = torch.inf
        leaves = {name: t.requires_grad_() for name, t in here.items()}
        expected = run(selective_scan_reference, exact(leaves), grads)[other]
        assert expected.isinf().any() and not expected.isnan().any()
        found = run(selective_scan, leaves, grads, backend=backend)[other]
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", SIZES)
def test_torch_backend(size):
    check("torch", size)


def test_sums_of_the_torch_backend():
    check_sums("torch")


@pytest.mark.skipif(cpu.unavailable() is not None, reason=f"no native kernels: {cpu.unavailable()}")
@pytest.mark.usefixtures("isa", "poison")
@pytest.mark.parametrize("size", SIZES)
def test_cpu_backend(size):
    check("cpu", size)


@pytest.mark.skipif(cpu.unavailable() is not None, reason=f"no native kernels: {cpu.unavailable()}")
@pytest.mark.usefixtures("isa", "poison")
def test_sums_of_the_cpu_backend():
    check_sums("cpu")
