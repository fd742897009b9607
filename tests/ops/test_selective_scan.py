from __future__ import annotations

import pytest
import torch
from torch.autograd import gradcheck

from ganglion.ops import selective_scan, selective_scan_reference
from tests.golden_data import load
from tests.tolerances import assert_close, relative_rms

NAMES = ("u", "delta", "A", "B", "C", "D", "delta_bias")
GOLDEN = load("ops")
CASES = sorted(GOLDEN.meta["ss"])


def golden_inputs(case: str, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    keys = {name: f"ss.{case}.in.{name}" for name in NAMES}
    return {n: GOLDEN[k].to(dtype).requires_grad_() for n, k in keys.items() if k in GOLDEN.arrays}


@pytest.mark.parametrize("scan", [selective_scan, selective_scan_reference])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", CASES)
def test_golden_outputs_and_gradients(case, dtype, scan):
    inputs = golden_inputs(case, dtype)
    y = scan(**inputs, delta_softplus=bool(GOLDEN[f"ss.{case}.softplus"]))
    bound = {torch.float32: 1e-5, torch.float64: 1e-9}[dtype]
    assert relative_rms(y, GOLDEN[f"ss.{case}.out"]) <= bound
    grads = torch.autograd.grad(y, list(inputs.values()), GOLDEN[f"ss.{case}.grad_out"].to(dtype))
    for name, grad in zip(inputs, grads, strict=True):
        assert relative_rms(grad, GOLDEN[f"ss.{case}.grad.{name}"]) <= bound, name


def inputs(batch=2, groups=2, channels=3, length=7, state=2, dtype=torch.float64):
    torch.manual_seed(0)
    wide = groups * channels
    args = {
        "u": torch.randn(batch, wide, length),
        "delta": torch.randn(batch, wide, length),
        "A": -torch.rand(wide, state) * 2,
        "B": torch.randn(batch, groups, state, length),
        "C": torch.randn(batch, groups, state, length),
        "D": torch.randn(wide),
        "delta_bias": torch.randn(wide),
    }
    return {name: t.to(dtype).requires_grad_() for name, t in args.items()}


def test_gradcheck():
    args = inputs()
    assert gradcheck(lambda *a: selective_scan(*a, delta_softplus=True), tuple(args.values()))


def test_opcheck():
    args = inputs(dtype=torch.float32)
    args.pop("D")
    torch.library.opcheck(torch.ops.ganglion.selective_scan, (*args.values(), True))


@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 500])
def test_any_length_equals_the_reference(length):
    args = inputs(length=length, dtype=torch.float32)
    exact = {name: t.detach().double() for name, t in args.items()}
    y = selective_scan(**args, delta_softplus=True)
    assert_close(y, selective_scan_reference(**exact, delta_softplus=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    args = inputs(length=50, dtype=dtype)
    exact = {name: t.detach().double() for name, t in args.items()}
    y = selective_scan(**args, delta_softplus=True)
    assert y.dtype == dtype
    assert_close(y, selective_scan_reference(**exact, delta_softplus=True))


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("u", (2, 6), r"u has shape \(2, 6\): expected \(B, G \* D, L\)"),
        ("A", (6, 0), "N >= 1"),
        ("B", (2, 4, 2, 7), "6 channels, B 4 groups"),
        ("delta", (2, 6, 8), r"delta has shape \(2, 6, 8\): expected \(2, 6, 7\)"),
        ("D", (5,), r"D has shape \(5,\): expected \(6,\)"),
    ],
)
def test_wrong_shapes_are_named(name, shape, message):
    args = inputs() | {name: torch.zeros(shape, dtype=torch.float64)}
    with pytest.raises(ValueError, match=message):
        selective_scan(**args)
