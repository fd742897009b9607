"""A linear layer and its GELU as one operator, against PyTorch's in float64, for every instruction set here."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import gradcheck, gradgradcheck
from torch.func import vmap

from ganglion.layers.linear import project_and_activate
from ganglion.layers.mlp import Mlp
from ganglion.ops import cpu
from ganglion.ops.linear import linear_gelu_inference
from tests.layers.test_dmca import operations

pytestmark = pytest.mark.skipif(
    cpu.unavailable() is not None, reason=f"no native kernels: {cpu.unavailable()}"
)

TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}
OPERATOR = torch.ops.ganglion.linear_gelu


@pytest.fixture(params=cpu.instruction_sets())
def isa(request, monkeypatch):
    monkeypatch.setenv(cpu.ISA_ENV, request.param)


@pytest.mark.parametrize("channels", [1, 15, 96, 333])
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("emulated", [False, True])
def test_values(channels, dtype, emulated, isa, monkeypatch):
    """Emulated products are computed in float32, and the pass after them writes the half precision."""
    monkeypatch.setattr("ganglion.ops.emulation._EMULATED", (dtype,) if emulated else ())
    torch.manual_seed(0)
    x, weight, bias = (torch.randn(s).to(dtype) for s in ((2, 7, 24), (channels, 24), (channels,)))
    for b in (bias, None):
        expected = F.gelu(F.linear(x.double(), weight.double(), None if b is None else b.double()))
        found = OPERATOR(x, weight, b)
        assert found.dtype == dtype and found.shape == (2, 7, channels)
        assert ((found - expected).abs() / (1 + expected.abs())).max() < TOLERANCES[dtype]


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_the_ends_of_gelu(dtype, isa):
    x = torch.tensor([0.0, -0.0, 1e-30, 5.4, -5.4, 9.0, -9.0, 100.0, -100.0, torch.inf, torch.nan]).to(dtype)
    found = cpu.pointwise.activate(x.clone()[None], None, "gelu", dtype)[0]
    torch.testing.assert_close(found, F.gelu(x), rtol=1e-6, atol=1e-5, equal_nan=True)


def test_the_number_of_threads_changes_nothing():
    x, weight = torch.randn(500, 16), torch.randn(97, 16)
    threads = torch.get_num_threads()
    found = []
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            found.append(
                cpu.pointwise.activate(x @ weight.T if n == 1 else found[0].clone(), None, "none", x.dtype)
            )
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_operator_under_transformations():
    """opcheck; derivatives of both modes and orders, by finite differences; examples at once, one by one."""
    x, weight, bias = (torch.randn(s, dtype=torch.float64).requires_grad_() for s in ((2, 3), (4, 3), (4,)))
    torch.library.opcheck(OPERATOR.default, (x, weight, bias))
    torch.library.opcheck(OPERATOR.default, tuple(t.detach().float() for t in (x, weight, bias)))
    assert gradcheck(OPERATOR, (x, weight, bias), check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(OPERATOR, (x, weight, bias))
    xs, weights = torch.stack([x, x + 1]), torch.stack([weight, weight + 1])
    expected = torch.stack([OPERATOR(xs[i], weights[i], bias) for i in range(2)])
    torch.testing.assert_close(vmap(OPERATOR, (0, 0, None))(xs, weights, bias), expected)
    expected = torch.stack([OPERATOR(xs[i], weight, bias) for i in range(2)])
    torch.testing.assert_close(vmap(OPERATOR, (0, None, None))(xs, weight, bias), expected)


def test_only_at_inference_where_nobody_waits():
    x, linear, act = torch.randn(1, 300, 8), nn.Linear(8, 128), nn.GELU()
    assert project_and_activate(linear, act, x) is None
    with torch.no_grad():
        assert project_and_activate(linear, act, x) is not None
        assert project_and_activate(linear, nn.GELU("tanh"), x) is None
        assert project_and_activate(linear, act, x[:, :9]) is None  # small
        assert linear_gelu_inference(x.double(), linear.weight.double(), None) is None
        linear.register_forward_hook(lambda *_: None)
        assert project_and_activate(linear, act, x) is None


def test_the_mlp_computes_the_same_with_it():
    x = torch.randn(1, 32, 20, 20).to(memory_format=torch.channels_last)
    mlp = Mlp(32, 128)
    with torch.no_grad():
        found = mlp(x)
        assert "ganglion::linear_gelu" in operations(lambda: mlp(x))
    torch.testing.assert_close(found, mlp(x).detach(), atol=1e-5, rtol=1e-5)
