"""Graphs of the scan on a device that is not here."""

from __future__ import annotations

import pytest
import timm
import torch
from functorch.compile import aot_function, make_boxed_func
from torch._subclasses.fake_tensor import FakeTensorMode

from ganglion.layers.ss2d import SS2D
from ganglion.ops import pattern, scan2d


def absent(device: str) -> list[torch.Tensor]:
    """Inputs of `scan2d` on a device that is not here."""
    shapes = ((2, 7, 5, 6), (2, 7, 5, 4 * (2 + 2)), (4, 6, 2), (4, 6), (4, 6, 1), (4, 6))
    return [torch.empty(shape, device=device) for shape in shapes]


@pytest.mark.parametrize("device", ["meta", "cuda"])
def test_no_graph_break(device):
    """Compiled to a graph with the operator in it, on tensors of a device that is not here."""
    routes = pattern("cross2d")
    with FakeTensorMode(allow_non_fake_inputs=True) if device == "cuda" else torch.device("meta"):
        graphs = []

        def backend(graph, inputs):
            graphs.append(graph)
            return graph.forward

        call = torch.compile(lambda *t: scan2d(*t, routes=routes) * 2, fullgraph=True, backend=backend)
        y = call(*absent(device))
        assert y.shape == (2, 7, 5, 6) and y.device.type == device
    targets = [node.target for graph in graphs for node in graph.graph.nodes]
    assert sum("ganglion.scan2d" in str(target) for target in targets) == 1


@pytest.mark.parametrize("device", ["meta", "cuda"])
def test_exports_for_a_device_that_is_not_here(device):
    class Scan(torch.nn.Module):
        def forward(self, *tensors):
            return scan2d(*tensors, routes=pattern("cross2d")) * 2

    with FakeTensorMode(allow_non_fake_inputs=True):
        program = torch.export.export(Scan(), tuple(absent(device)))
    nodes = [node for node in program.graph.nodes if "ganglion" in str(node.target)]
    assert [node.target for node in nodes] == [torch.ops.ganglion.scan2d.default]
    y, carry = nodes[0].meta["val"]
    assert (y.device.type, y.shape, carry.shape) == (device, (2, 7, 5, 6), (2, 24))


def test_training_is_one_operator_each_way():
    """Forward and backward graphs for a device that is not here. Autograd runs on none that is fake but meta."""
    graphs = []

    def compiler(graph, inputs):
        graphs.append([str(node.target) for node in graph.graph.nodes if "ganglion" in str(node.target)])
        return make_boxed_func(graph.forward)

    tensors = [tensor.requires_grad_() for tensor in absent("meta")]
    routes = pattern("cross2d")
    step = aot_function(
        lambda *t: scan2d(*t, routes=routes).sum(), fw_compiler=compiler, bw_compiler=compiler
    )
    step(*tensors).backward()
    assert graphs == [["ganglion.scan2d.default"], ["ganglion.scan2d_backward.default"]]
    assert all(tensor.grad.shape == tensor.shape for tensor in tensors)


@pytest.mark.parametrize("name", ["test_vmamba", "test_sparx_mamba"])
def test_no_graph_break_in_a_network(name):
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    model = timm.create_model(name, device="meta").to(memory_format=torch.channels_last)
    y = torch.compile(model, fullgraph=True, backend=backend)(torch.empty(2, 3, 64, 64, device="meta"))
    assert y.shape == (2, 1000) and len(graphs) == 1
    scans = sum(isinstance(layer, SS2D) for layer in model.modules())
    assert scans == sum("ganglion.scan2d" in str(node.target) for node in graphs[0].graph.nodes)
