"""Layers and networks that train with the kernel, in every tool that PyTorch has; and without it."""

from __future__ import annotations

import contextlib
import ctypes
import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import checkpoint

import ganglion
from ganglion.layers import depthwise as depthwise_layers
from ganglion.ops import cpu, depthwise
from ganglion.ops.depthwise import depthwise_conv2d, uses_kernel
from tests.tolerances import assert_close

from . import test_depthwise
from .test_depthwise import accepted, conv2d, normal

pytestmark = test_depthwise.pytestmark
calls = test_depthwise.calls


def layers() -> dict[str, nn.Module]:
    return {"conv": depthwise_layers.DepthwiseConv2d(8, 5), "residual": depthwise_layers.ResidualDWConv(8)}


@pytest.mark.parametrize("name", layers())
def test_layers_use_the_kernel_in_training_only(name, calls):
    layer, x = layers()[name], normal(2, 8, 5, 7)
    y = layer(x)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), y.detach(), atol=1e-5, rtol=1e-5)
    y.sum().backward()
    assert calls == [5 if name == "conv" else 3]
    calls.clear()
    checkpoint(layer, x.requires_grad_(), use_reentrant=False).sum().backward()
    assert len(calls) == 1


@pytest.mark.parametrize("name", layers())
@pytest.mark.filterwarnings("error::torch.jit.TracerWarning")
def test_graphs_contain_plain_convolutions(name):
    layer, x = layers()[name], normal(2, 8, 5, 7)
    targets: list[object] = []

    def backend(module: torch.fx.GraphModule, _):
        functions = (node.target for node in module.graph.nodes if node.op == "call_function")
        targets.extend(target for target in functions if target is not getattr)
        return module

    torch.compile(layer, backend=backend, fullgraph=True)(x).sum().backward()
    arithmetic = [] if name == "conv" else ["pad", "add"]
    assert targets.pop() is torch.conv2d
    assert [target.__name__ for target in targets] == arithmetic  # pyright: ignore

    exported = torch.export.export(layer, (x,)).graph_module
    operators = [node.target for node in exported.graph.nodes if node.op == "call_function"]
    assert operators.count(torch.ops.aten.conv2d.default) == 1
    assert not [op for op in operators if not isinstance(op, torch._ops.OpOverload)]

    symbolic = torch.fx.symbolic_trace(layer)
    functions = [node.target for node in symbolic.graph.nodes if node.op == "call_function"]
    assert functions == [depthwise_layers.conv2d if name == "conv" else depthwise_layers.residual_conv2d]

    for graph in (torch.jit.script(layer).inlined_graph, torch.jit.trace(layer, x).inlined_graph):
        kinds = [node.kind() for node in graph.nodes()]
        assert sum(kind in ("aten::conv2d", "aten::_convolution") for kind in kinds) == 1
        assert "prim::PythonOp" not in kinds

    def grad_weight(x: Tensor, weight: Tensor) -> Tensor:
        return torch.autograd.grad(depthwise_conv2d(x, weight).sum(), weight)[0]

    code = make_fx(grad_weight)(x, layer.weight).code
    assert "aten.convolution_backward" in code


def test_compiled_gradients_equal_eager_ones():
    layer, x = depthwise_layers.DepthwiseConv2d(8, 5), normal(2, 8, 5, 7)
    grads = []
    for call in (layer, torch.compile(layer, backend="aot_eager", fullgraph=True)):
        layer.zero_grad()
        call(x).square().sum().backward()
        grads.append([p.grad for p in layer.parameters()])
    for eager, compiled in zip(*grads, strict=True):
        assert_close(eager, compiled)


def test_functional_transforms():
    x, weight, bias = accepted()

    def loss(weight: Tensor) -> Tensor:
        return depthwise_conv2d(x, weight, bias).square().sum()

    (reference,) = torch.autograd.grad(conv2d(x, weight, bias).square().sum(), weight)
    assert_close(torch.func.grad(loss)(weight), reference)
    tangent = normal(*weight.shape, seed=3)
    with forward_ad.dual_level():
        derivative = forward_ad.unpack_dual(loss(forward_ad.make_dual(weight, tangent))).tangent
    assert_close(derivative, (reference * tangent).sum())
    per_image = torch.func.vmap(torch.func.grad(lambda w, x: conv2d(x[None], w).sum()), (None, 0))
    ours = torch.func.vmap(torch.func.grad(lambda w, x: depthwise_conv2d(x[None], w).sum()), (None, 0))
    assert_close(ours(weight, x), per_image(weight, x))


def network_gradients(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    torch.manual_seed(0)
    model = ganglion.create_model("test_sparx_mamba").to(dtype)
    size = model.default_cfg["input_size"][-1]  # pyright: ignore
    model.train()(normal(2, 3, size, size).to(dtype)).square().sum().backward()
    return {name: p.grad.double() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.filterwarnings("ignore:.*runs on the slower backend.*float64")
def test_a_network_trains_with_the_kernel_as_without(calls, monkeypatch):
    """Its gradients are as near to those in float64 as PyTorch's own are."""
    with_kernel = network_gradients()
    assert len(calls) > 4
    calls.clear()
    monkeypatch.setattr(depthwise, "uses_kernel", lambda *_: False)
    without, exact = network_gradients(), network_gradients(torch.float64)
    assert calls == []
    assert with_kernel.keys() == without.keys() == exact.keys()
    scale = torch.stack([g.square().mean() for g in exact.values()]).mean().sqrt()
    for name, grad in exact.items():
        error, theirs = ((g[name] - grad).square().mean().sqrt() for g in (with_kernel, without))
        assert error <= 2 * theirs + 1e-6 * (grad.square().mean().sqrt() + 1e-3 * scale), name


@contextlib.contextmanager
def fresh_library():
    """Within, the library is looked for again."""
    for cached in (cpu.library._library, cpu.library._indices):
        cached.cache_clear()
    try:
        yield
    finally:
        for cached in (cpu.library._library, cpu.library._indices):
            cached.cache_clear()


def test_without_the_library_pytorch_trains_silently(tmp_path, monkeypatch):
    x, weight, bias = accepted()
    monkeypatch.setattr(cpu.library, "__file__", str(tmp_path / "library.py"))
    with fresh_library(), warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not uses_kernel(x, weight, bias)
        depthwise_conv2d(x, weight, bias).sum().backward()
        assert weight.grad is not None
        with pytest.raises(RuntimeError, match="pip install"):
            cpu.depthwise.grad_weight(x, x, 3)


def test_a_library_with_other_arguments_is_refused(monkeypatch):
    class Longer(ctypes.Structure):
        _fields_ = [*cpu.library.Depthwise._fields_, ("more", ctypes.c_int64)]

    monkeypatch.setitem(cpu.library._CALLS, "depthwise", Longer)
    with fresh_library():
        assert "its arguments differ" in (cpu.unavailable() or "")


def test_wrong_arguments_are_refused():
    x = torch.zeros(2, 5, 7, 8)
    for wrong in (x.double(), x[0], x.mT):
        with pytest.raises(ValueError, match=r"grad_y is .* expected contiguous float32"):
            cpu.depthwise.grad_weight(x, wrong, 3)
    with pytest.raises(ValueError, match="expected the same shape"):
        cpu.depthwise.grad_weight(x, x[:1], 3)
    with pytest.raises(ValueError, match="unknown kernel size 4"):
        cpu.depthwise.grad_weight(x, x, 4)
