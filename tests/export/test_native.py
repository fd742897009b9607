"""The native library as custom operators of onnxruntime."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch

import ganglion
from ganglion.export import onnxruntime_library
from ganglion.ops.cpu import unavailable

from .test_onnx_scan import CROSS, EVERY, NAMES, arguments, expected, relative

onnx = pytest.importorskip("onnx", reason="NOT TESTED: onnx is not installed (ganglion[export])")
runtime = pytest.importorskip(
    "onnxruntime", reason="NOT TESTED: onnxruntime is not installed (ganglion[export])"
)
pytestmark = pytest.mark.skipif(unavailable() is not None, reason=f"NOT TESTED: {unavailable()}")


def session():
    """One scan with every input given."""
    kinds = [(name, onnx.TensorProto.FLOAT) for name in NAMES]
    kinds += [("size", onnx.TensorProto.INT64), ("routes", onnx.TensorProto.INT64)]
    inputs = [onnx.helper.make_tensor_value_info(name, kind, None) for name, kind in kinds]
    output = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)
    node = onnx.helper.make_node("scan2d", [name for name, _ in kinds], ["y"], domain="ganglion")
    graph = onnx.helper.make_graph([node], "one", inputs, [output])
    opsets = [onnx.helper.make_opsetid("", 20), onnx.helper.make_opsetid("ganglion", 1)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = runtime.SessionOptions()
    options.register_custom_ops_library(str(onnxruntime_library()))
    return runtime.InferenceSession(model.SerializeToString(), options)


@pytest.fixture(scope="module")
def one():
    return session()


def feed(args, codes, size):
    named = {name: t.numpy() for name, t in zip(NAMES, args, strict=True)}
    named["A"] = -np.exp(named["A"])
    return named | {"size": np.array(size), "routes": np.array(codes)}


@pytest.mark.parametrize(("codes", "state"), [(CROSS, 1), (EVERY, 2)])
def test_against_the_definition(one, codes, state):
    for size in ((5, 7), (1, 1), (9, 40)):
        args = arguments(codes, *size, state=state, channels=37)
        assert relative(one.run(None, feed(args, codes, size))[0], expected(args, codes, size)) < 1e-6


def test_no_images(one):
    args = arguments(CROSS, 3, 4, batch=0)
    assert one.run(None, feed(args, CROSS, (3, 4)))[0].shape == (0, 12, 5)


@pytest.mark.parametrize("wrong", ["size", "proj", "A", "D"])
def test_shapes_that_do_not_fit_give_no_number(one, wrong):
    given = feed(arguments(CROSS, 3, 4), CROSS, (3, 4))
    given[wrong] = np.array([3, 5]) if wrong == "size" else given[wrong][..., :-1].copy()
    assert np.isnan(one.run(None, given)[0]).all()


def test_a_network_of_any_size(tmp_path):
    torch.manual_seed(0)
    network = timm.create_model("test_vmamba", num_classes=5, depths=(1, 1), dims=(8, 12))
    path = tmp_path / "net.onnx"
    report = ganglion.export_model(network, path, size=(64, 48), dynamic=("batch", "size"), native=True)
    assert report["passed"] and report["max_relative_error"] < 1e-5
    domains = [node.domain for node in onnx.load(path).graph.node]
    assert domains.count("ganglion") == 2
    with pytest.raises(Exception, match="ganglion"):
        runtime.InferenceSession(path)


def test_two_forms_at_once_are_refused(tmp_path):
    network = timm.create_model("test_vmamba")
    with pytest.raises(ValueError, match="loop_free and native are two forms"):
        ganglion.export_model(network, tmp_path / "a.onnx", size=32, native=True, loop_free=True)
    with pytest.raises(ValueError, match="native is a form of ONNX"):
        ganglion.export_model(network, tmp_path / "a.pt2", size=32, native=True)
