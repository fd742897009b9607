"""Depthwise convolution against PyTorch's in float64, for every instruction set of this machine."""

from __future__ import annotations

import functools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils.flop_counter import FlopCounterMode

from ganglion.layers import depthwise as depthwise_layers
from ganglion.ops import cpu, depthwise
from ganglion.ops.depthwise import depthwise_conv2d, is_depthwise, uses_kernel
from tests.tolerances import assert_close

pytestmark = [
    pytest.mark.skipif(cpu.unavailable() is not None, reason=f"no native kernels: {cpu.unavailable()}"),
    pytest.mark.usefixtures("poison"),
]

#: B, C, H, W
SHAPES = (
    (2, 1, 1, 1),
    (2, 3, 5, 7),
    (1, 16, 4, 4),
    (3, 17, 3, 10),
    (2, 40, 8, 2),
    (1, 250, 6, 5),
    (2, 33, 1, 6),
    (2, 64, 7, 1),
    # Rows longer than a band, several bands of an image, several pieces, more images than pieces.
    (1, 40, 3, 150),
    (2, 40, 150, 3),
    (3, 48, 20, 21),
    (70, 16, 5, 5),
)


@pytest.fixture
def calls(monkeypatch):
    """The kernel sizes with which the native kernel was called."""
    found: list[int] = []
    kernel = cpu.depthwise.grad_weight

    def spy(x: Tensor, grad_y: Tensor, kernel_size: int) -> Tensor:
        found.append(kernel_size)
        return kernel(x, grad_y, kernel_size)

    monkeypatch.setattr(cpu.depthwise, "grad_weight", spy)
    return found


def normal(*shape: int, seed: int = 0) -> Tensor:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return values.to(memory_format=torch.channels_last) if len(shape) == 4 else values


def inputs(shape: tuple[int, ...], kernel_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """x, weight and bias that require gradients."""
    channels = shape[1]
    x, weight, bias = normal(*shape), normal(channels, 1, kernel_size, kernel_size), normal(channels)
    return x.requires_grad_(), weight.contiguous().requires_grad_(), bias.requires_grad_()


def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2, groups=weight.shape[0])


def double(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(t.detach().double().requires_grad_(t.requires_grad) for t in tensors)


@functools.cache
def expected(shape: tuple[int, ...], kernel_size: int) -> tuple[Tensor, ...]:
    """y and the gradients of `inputs`, in float64."""
    tensors = double(*inputs(shape, kernel_size))
    y = conv2d(*tensors)
    return y.detach(), *torch.autograd.grad(y, tensors, normal(*shape, seed=1).double())


@pytest.mark.parametrize("kernel_size", cpu.depthwise.KERNEL_SIZES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gradients_equal_pytorch(shape, kernel_size, isa, calls):
    tensors = inputs(shape, kernel_size)
    y = depthwise_conv2d(*tensors)
    results = y, *torch.autograd.grad(y, tensors, normal(*shape, seed=1))
    assert calls == [kernel_size]
    for name, result, reference in zip(
        ("y", "x", "weight", "bias"), results, expected(shape, kernel_size), strict=True
    ):
        assert result.dtype == torch.float32
        assert_close(result, reference, name=name)
    # Taps that only ever meet padding are exactly zero, and no tap hides behind the norm of all.
    weight, reference = results[2].double(), expected(shape, kernel_size)[2]
    assert not weight[reference == 0].any()
    torch.testing.assert_close(weight, reference, rtol=1e-4, atol=1e-4)


def test_error_is_not_larger_than_pytorch(isa):
    shape = (4, 32, 56, 56)
    x, weight, bias = inputs(shape, 3)
    ours, theirs = (
        torch.autograd.grad(call(x, weight, bias).square().sum(), weight)[0]
        for call in (depthwise_conv2d, conv2d)
    )
    exact = double(x, weight, bias)
    (reference,) = torch.autograd.grad(conv2d(*exact).square().sum(), exact[1])
    assert (ours - reference).norm() <= 1.1 * (theirs - reference).norm()


@pytest.mark.parametrize("shape", [(1, 250, 9, 11), (5, 40, 30, 70), (300, 33, 3, 3)], ids=str)
def test_results_do_not_depend_on_the_number_of_threads(shape, isa):
    x, grad_y = (normal(*shape, seed=seed).permute(0, 2, 3, 1) for seed in (0, 1))
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 1, 2, 3, 7):
            torch.set_num_threads(threads)
            results.append(cpu.depthwise.grad_weight(x, grad_y, 9))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert torch.equal(results[0], other)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["x", "grad_y"])
@pytest.mark.parametrize("width", [3, 8])
def test_nonfinite_values_reach_the_taps_that_meet_them(value, where, width, isa):
    shape = (2, 35, 4, width)
    _, weight, _ = inputs(shape, 5)
    maps = {"x": normal(*shape), "grad_y": normal(*shape, seed=1)}
    # In the corner: half of the taps there are padding, and zero times infinity must not come from it.
    maps[where][1, 34, 0, width - 1] = value
    (found,) = torch.autograd.grad(depthwise_conv2d(maps["x"], weight), weight, maps["grad_y"])
    meets = {name: torch.ones(shape) for name in maps}
    meets[where] = 1 - maps[where].isfinite().float()
    (expected,) = torch.autograd.grad(conv2d(meets["x"], weight), weight, meets["grad_y"])
    assert 0 < expected.sum() < 25
    assert torch.equal(~found.isfinite(), expected > 0)


@pytest.mark.parametrize("shape", [(0, 8, 5, 7), (0, 8, 1, 1)], ids=str)
def test_empty_batch(shape, calls):
    tensors = inputs(shape, 3)
    y = depthwise_conv2d(*tensors)
    assert y.shape == shape
    for grad, tensor in zip(torch.autograd.grad(y.sum(), tensors), tensors, strict=True):
        assert grad.shape == tensor.shape
        assert not grad.any()
    assert calls == [3]


@pytest.mark.parametrize("layout", ["contiguous", "slice of channels", "transposed", "expanded"])
def test_maps_in_other_memory(layout):
    shape = (2, 20, 5, 7)
    x, weight, bias = inputs(shape, 3)
    x = x.detach()
    x = {
        "contiguous": lambda: x.contiguous(),
        "slice of channels": lambda: normal(2, 40, 5, 7)[:, 10:30],
        "transposed": lambda: normal(2, 20, 7, 5).mT,
        "expanded": lambda: x[:1].expand(shape),
    }[layout]().requires_grad_()
    exact = double(x, weight, bias)
    for grad_y in (normal(*shape, seed=1).contiguous(), torch.ones(()).expand(shape)):
        grads = torch.autograd.grad(depthwise_conv2d(x, weight, bias), (x, weight, bias), grad_y)
        for grad, reference in zip(
            grads, torch.autograd.grad(conv2d(*exact), exact, grad_y.double()), strict=True
        ):
            assert_close(grad, reference)


def test_backward_in_other_circumstances():
    """Under autocast, and with saved tensors that come back in other memory."""
    x, weight, bias = inputs((2, 20, 5, 7), 3)
    references = torch.autograd.grad(conv2d(x, weight, bias).square().sum(), (x, weight, bias))
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t.contiguous()):
        loss = depthwise_conv2d(x, weight, bias).square().sum()
        hooked = torch.autograd.grad(loss, (x, weight, bias))
    loss = depthwise_conv2d(x, weight, bias).square().sum()
    with torch.autocast("cpu", torch.bfloat16):
        cast = torch.autograd.grad(loss, (x, weight, bias))
    for grads in (hooked, cast):
        for grad, reference in zip(grads, references, strict=True):
            assert grad.dtype == torch.float32
            assert_close(grad, reference)


def test_gradients_keep_channels_last_memory():
    x, weight, bias = inputs((2, 20, 5, 7), 3)
    for grad_y in (normal(2, 20, 5, 7), torch.ones(()).expand(2, 20, 5, 7)):
        (grad_x,) = torch.autograd.grad(depthwise_conv2d(x, weight, bias), x, grad_y)
        assert grad_x.is_contiguous(memory_format=torch.channels_last)


def test_only_needed_gradients_are_computed(calls):
    x, weight, bias = inputs((2, 20, 5, 7), 3)
    depthwise_conv2d(x.detach(), weight, bias).sum().backward()
    assert calls == [3]
    assert x.grad is None and weight.grad is not None and bias.grad is not None
    depthwise_conv2d(x, weight.detach(), bias).sum().backward()
    assert calls == [3]
    assert x.grad is not None
    (reference,) = torch.autograd.grad(conv2d(x, weight, bias).sum(), x)
    assert_close(x.grad, reference)


def test_second_derivatives_equal_pytorch(calls):
    results = []
    tensors = inputs((2, 6, 5, 4), 3)
    direction = [normal(*t.shape, seed=2) for t in tensors]
    for call in (depthwise_conv2d, conv2d):
        grads = torch.autograd.grad(call(*tensors).sin().sum(), tensors, create_graph=True)
        product = sum((g * d).sum() for g, d in zip(grads, direction, strict=True))
        results.append((*grads, *torch.autograd.grad(product, tensors)))
    for found, reference in zip(*results, strict=True):
        assert_close(found, reference)


@pytest.mark.parametrize("with_bias", [True, False])
def test_gradgradcheck(with_bias):
    """In float64, with the function of our own made to accept it: all of its second derivatives are PyTorch's."""
    x, weight, bias = double(*inputs((2, 2, 3, 4), 3))
    call = depthwise._DepthwiseConv2d.apply
    tensors = (x, weight, bias) if with_bias else (x, weight)
    assert torch.autograd.gradgradcheck(lambda *t: call(*t, *[None] * (3 - len(t))), tensors)


def test_gradients_vectorised_over_outputs():
    x, weight, bias = inputs((2, 6, 5, 4), 3)
    grad_y = torch.randn(4, 2, 6, 5, 4)
    found, reference = (
        torch.autograd.grad(call(x, weight, bias), (x, weight, bias), grad_y, is_grads_batched=True)
        for call in (depthwise_conv2d, conv2d)
    )
    for a, b in zip(found, reference, strict=True):
        assert_close(a, b)


def accepted() -> tuple[Tensor, Tensor, Tensor]:
    return inputs((2, 8, 5, 7), 3)


def test_training_in_float32_uses_the_kernel():
    x, weight, bias = accepted()
    assert uses_kernel(x, weight, bias)
    assert uses_kernel(x.detach(), weight, None)
    assert uses_kernel(x, nn.Parameter(weight), bias)
    assert uses_kernel(x, weight * 2, bias)


@pytest.mark.parametrize(
    "context",
    [
        torch.no_grad,
        torch.inference_mode,
        lambda: torch.autocast("cpu", torch.bfloat16),
        lambda: FlopCounterMode(display=False),
        forward_ad.dual_level,
    ],
    ids=["no_grad", "inference_mode", "autocast", "dispatch_mode", "forward_ad"],
)
def test_contexts_that_keep_pytorch(context):
    x, weight, bias = accepted()
    with context():
        assert not uses_kernel(x, weight, bias)
    assert uses_kernel(x, weight, bias)


def test_arguments_that_keep_pytorch():
    class Special(Tensor):
        pass

    x, weight, bias = accepted()
    with torch.device("meta"):
        meta = torch.empty(2, 8, 5, 7), torch.empty(8, 1, 3, 3, requires_grad=True), torch.empty(8)
    for arguments in (
        (x, weight.detach(), bias),
        (x.double(), weight.double(), bias.double()),
        (x.bfloat16(), weight.bfloat16(), bias.bfloat16()),
        (x.contiguous(), weight, bias),
        (x.as_subclass(Special), weight, bias),
        (x, F.pad(weight, (4, 4, 4, 4)), bias),
        (x, weight[..., 1:], bias),
        (x, torch.ones(8, 2, 3, 3, requires_grad=True), bias),
        (x[0], weight, bias),
        meta,
    ):
        assert not uses_kernel(*arguments)


def test_which_convolutions_are_depthwise():
    weight = torch.empty(8, 1, 3, 3)
    assert is_depthwise(weight, [1, 1], [1, 1], [1, 1], 8)
    assert is_depthwise(weight, (1, 1), (1, 1), [1, 1], 8)
    assert not is_depthwise(weight, [2, 2], [1, 1], [1, 1], 8)
    assert not is_depthwise(weight, [1, 1], [0, 0], [1, 1], 8)
    assert not is_depthwise(weight, [1, 1], [1, 1], [1, 1], 4)
    assert not is_depthwise(weight, [1, 1], [1, 1], [2, 2], 8)
    assert not is_depthwise(torch.empty(8, 2, 3, 3), [1, 1], [1, 1], [1, 1], 8)
    assert not is_depthwise(torch.empty(8, 1, 3, 5), [1, 1], [1, 1], [1, 1], 8)
    assert not is_depthwise(torch.empty(8, 1, 2, 2), [1, 1], [1, 1], [1, 1], 8)


@pytest.mark.parametrize(
    "arguments",
    [(8, 8, 3, 2, 1, 8), (8, 8, 3, 1, 0, 8), (8, 8, 3, 1, 1, 4), (8, 16, 3, 1, 1, 8), (8, 8, 2, 1, 1, 8)],
    ids=str,
)
def test_other_convolutions_are_those_of_pytorch(arguments, calls):
    inner, outer, kernel_size, stride, padding, groups = arguments
    layer = nn.Conv2d(inner, outer, kernel_size, stride=stride, padding=padding, groups=groups)
    x = normal(2, inner, 6, 6)
    y = depthwise_layers.conv2d(x, layer.weight, layer.bias, [stride] * 2, [padding] * 2, [1, 1], groups)
    y.sum().backward()
    assert calls == []
    assert torch.equal(y, F.conv2d(x, layer.weight, layer.bias, stride, padding, groups=groups))
