"""The scan as ONNX and as a program of torch, against the float64 definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ganglion.export.scan_by_lines import scan_by_lines
from ganglion.ops.routes import PATTERNS

onnx = pytest.importorskip("onnx", reason="NOT TESTED: onnx is not installed (ganglion[export])")
runtime = pytest.importorskip(
    "onnxruntime", reason="NOT TESTED: onnxruntime is not installed (ganglion[export])"
)
ir = pytest.importorskip("onnx_ir")

NAMES = ("x", "proj", "dt_weight", "dt_bias", "A", "D")
CROSS = [route.code for route in PATTERNS["cross2d"]]
EVERY = list(range(16))


def arguments(codes, height, width, *, channels=5, rank=3, state=1, batch=2):
    g = torch.Generator().manual_seed(0)
    routes, pixels = len(codes), height * width
    return (
        torch.randn(batch, pixels, channels, generator=g),
        torch.randn(batch, pixels, routes * (rank + 2 * state), generator=g),
        torch.randn(routes, channels, rank, generator=g),
        torch.randn(routes, channels, generator=g) - 3,
        torch.randn(routes, channels, state, generator=g),
        torch.randn(routes, channels, generator=g),
    )


def expected(args, codes, size):
    return torch.ops.ganglion.scan2d(*(t.double() for t in args), codes, "no-cpu", list(size), True)[0]


def session(codes, *, rank=3, state=1, size=None):
    from ganglion.export.onnx_scan import DOMAIN, scan_function

    function = scan_function("scan", codes, dt_rank=rank, d_state=state, log_A=True, size=size, opset=20)
    floats = ir.TensorType(ir.DataType.FLOAT)
    ranks = (3, 3, 3, 2, 3, 2)
    inputs = [
        ir.Value(name=n, type=floats, shape=ir.Shape([None] * r)) for n, r in zip(NAMES, ranks, strict=True)
    ]
    inputs.append(ir.Value(name="size", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([2])))
    node = ir.Node(DOMAIN, "scan", inputs, num_outputs=1)
    node.outputs[0].name, node.outputs[0].type, node.outputs[0].shape = "y", floats, ir.Shape([None] * 3)
    graph = ir.Graph(inputs, node.outputs, nodes=[node], opset_imports={"": 20, DOMAIN: 1}, name="one")
    proto = ir.to_proto(ir.Model(graph, ir_version=10, functions=[function]))
    onnx.checker.check_model(proto)
    return runtime.InferenceSession(proto.SerializeToString())


def relative(found, wanted):
    return float(np.abs(found - wanted.numpy()).max() / wanted.abs().max())


def run(made, args, size):
    feed = {n: t.numpy() for n, t in zip(NAMES, args, strict=True)}
    return made.run(None, feed | {"size": np.array(size)})[0]


def test_one_function_serves_every_size():
    made = session(EVERY, state=2)
    for size in ((5, 7), (1, 1), (1, 6), (8, 3)):
        args = arguments(EVERY, *size, state=2)
        assert relative(run(made, args, size), expected(args, EVERY, size)) < 1e-6


@pytest.mark.parametrize("size", [(5, 7), (1, 1), (2, 8), (1, 6)])
def test_the_form_without_loops(size):
    args = arguments(CROSS, *size)
    made = session(CROSS, size=size)
    assert relative(run(made, args, size), expected(args, CROSS, size)) < 1e-6


def test_long_memory_and_decays_that_underflow():
    """Decays next to 1 over 1,600 steps, and next to 0, in one map."""
    args = list(arguments(CROSS, 40, 40))
    args[3][:, :2], args[3][:, 2:] = -9, 30
    made = session(CROSS)
    assert relative(run(made, args, (40, 40)), expected(args, CROSS, (40, 40))) < 2e-6


@pytest.mark.parametrize("loop_free", [False, True])
def test_in_operators_of_torch(loop_free):
    for size in ((5, 7), (8, 2)):
        args = arguments(EVERY, *size, state=2)
        y, _ = scan_by_lines(*(t.double() for t in args), EVERY, "auto", size, True, loop_free=loop_free)
        torch.testing.assert_close(y, expected(args, EVERY, size), rtol=1e-12, atol=1e-12)
