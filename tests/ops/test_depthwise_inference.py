"""Depthwise convolution with all that follows it, against PyTorch's in float64, for every instruction set here."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import gradcheck, gradgradcheck
from torch.func import vmap

from ganglion.layers.basic import Chain
from ganglion.layers.depthwise import DepthwiseConv2d, ResidualDWConv, convolve_and_activate
from ganglion.ops import cpu
from ganglion.ops.depthwise import depthwise_inference

pytestmark = pytest.mark.skipif(
    cpu.unavailable() is not None, reason=f"no native kernels: {cpu.unavailable()}"
)

#: B, C, H, W, K, stride
CASES = (
    (1, 3, 5, 6, 3, 1),
    (2, 33, 7, 9, 5, 1),
    (1, 70, 1, 1, 7, 1),
    (2, 40, 14, 15, 3, 2),
    (2, 64, 9, 11, 9, 8),
    (1, 32, 3, 100, 7, 1),
    (1, 1024, 7, 7, 5, 1),
    (2, 512, 29, 30, 3, 1),
)
TOLERANCES = {torch.float32: 4e-6, torch.bfloat16: 5e-3, torch.float16: 6e-4}
ACTS = {"none": lambda y: y, "silu": F.silu, "gelu": F.gelu}


@pytest.fixture(params=cpu.instruction_sets())
def isa(request, monkeypatch):
    monkeypatch.setenv(cpu.ISA_ENV, request.param)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_values(case, dtype, isa):
    B, C, H, W, K, stride = case
    torch.manual_seed(0)
    x = torch.randn(B, C, H, W).to(dtype=dtype, memory_format=torch.channels_last)
    weight, bias = torch.randn(C, 1, K, K).to(dtype), torch.randn(C).to(dtype)
    conv = F.conv2d(x.double(), weight.double(), bias.double(), stride, K // 2, groups=C)
    for activation, act in ACTS.items():
        for residual in (False, True)[: 1 + (stride == 1)]:
            y = depthwise_inference(x, weight, bias, stride=stride, residual=residual, activation=activation)
            assert y is not None and y.dtype == dtype
            assert y.is_contiguous(memory_format=torch.channels_last)
            expected = act(conv + x if residual else conv)
            assert ((y - expected).abs() / (1 + expected.abs())).max() < TOLERANCES[dtype]


def test_the_number_of_threads_changes_nothing():
    x = torch.randn(1, 256, 30, 31).to(memory_format=torch.channels_last)
    weight = torch.randn(256, 1, 5, 5)
    threads = torch.get_num_threads()
    found = []
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            found.append(depthwise_inference(x, weight, None, activation="gelu"))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_operator_passes_opcheck():
    x = torch.randn(1, 4, 5, 6).to(memory_format=torch.channels_last).requires_grad_()
    weight, bias = torch.randn(4, 1, 3, 3, requires_grad=True), torch.randn(4, requires_grad=True)
    torch.library.opcheck(torch.ops.ganglion.depthwise.default, (x, weight, bias, 1, True, "gelu"))
    torch.library.opcheck(torch.ops.ganglion.depthwise.default, (x, weight, None, 2, False, "silu"))


def test_operator_under_transformations():
    """Derivatives of both modes and orders, by finite differences; examples at once, one by one."""
    generator = torch.Generator().manual_seed(0)
    shapes = (2, 2, 3, 4), (2, 1, 3, 3), (2,)
    x, weight, bias = (torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes)

    def function(*tensors):
        return torch.ops.ganglion.depthwise(*tensors, 1, True, "gelu")

    tensors = [t.requires_grad_() for t in (x, weight, bias)]
    assert gradcheck(function, tensors, check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(function, tensors)
    images, weights = torch.stack([x, x + 1]), torch.stack([weight, weight + 1])
    for dims in ((0, None, None), (None, 0, None), (0, 0, None)):
        given = [t if dim is None else more for dim, t, more in zip(dims, tensors, (images, weights, None))]
        each = [function(*(t if dim is None else t[i] for dim, t in zip(dims, given))) for i in range(2)]
        torch.testing.assert_close(vmap(function, dims)(*given), torch.stack(each))


def test_only_where_no_gradient_is_needed_and_nobody_waits():
    x = torch.randn(1, 8, 5, 5).to(memory_format=torch.channels_last)
    conv, act = DepthwiseConv2d(8, 3), nn.GELU()
    assert convolve_and_activate(conv, act, x) is None
    with torch.no_grad():
        assert convolve_and_activate(conv, act, x) is not None
        act.register_forward_hook(lambda *_: None)
        assert convolve_and_activate(conv, act, x) is None


def test_layers_compute_the_same_in_one_pass():
    torch.manual_seed(0)
    x = torch.randn(2, 16, 9, 10).to(memory_format=torch.channels_last)
    chain = Chain(DepthwiseConv2d(16, 3, bias=False), nn.BatchNorm2d(16), nn.GELU(), nn.Linear(16, 8))
    chain(10 * x + 3)
    chain.eval()
    for layer in (chain, ResidualDWConv(16)):
        with torch.no_grad():
            found = layer(x)
        torch.testing.assert_close(found, layer(x).detach(), atol=1e-5, rtol=1e-5)
