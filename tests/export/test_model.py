"""`export_model` and `ganglion export`: the file, its proof, and that nothing half-written is left."""

from __future__ import annotations

import copy
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import timm
import torch

import ganglion
from ganglion.export import ExportError
from ganglion.export import model as module
from ganglion.export.int8 import LEAST, with_int8_weights
from ganglion.export.portable import without_own_operators
from ganglion.export.program import trace
from ganglion_cli import _parser, main

pytest.importorskip("onnxscript", reason="NOT TESTED: onnxscript is not installed (ganglion[export])")
runtime = pytest.importorskip(
    "onnxruntime", reason="NOT TESTED: onnxruntime is not installed (ganglion[export])"
)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return timm.create_model("test_vmamba", num_classes=5, depths=(1, 1), dims=(8, 12)).eval()


@pytest.fixture(scope="module")
def dynamic(network, tmp_path_factory):
    path = tmp_path_factory.mktemp("export") / "net.onnx"
    return path, ganglion.export_model(network, path, size=(64, 48), dynamic=("batch", "size"))


def test_an_onnx_file_of_any_size(network, dynamic):
    path, report = dynamic
    assert report["passed"] and report["max_relative_error"] < 1e-5 and report["top1_agreement"] == 1
    assert report["inputs"] == {"images": ["batch", 3, "height", "width"]} and report["outputs"] == ["logits"]
    assert [check["shape"] for check in report["checks"]] == [[1, 3, 64, 48], [1, 3, 4, 4], [3, 3, 81, 55]]
    session = runtime.InferenceSession(path)
    x = torch.randn(2, 3, 39, 130, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        y = network(x).numpy()
    assert np.abs(session.run(None, {"images": x.numpy()})[0] - y).max() < 1e-5 * np.abs(y).max()


def test_every_scan_is_one_node(dynamic):
    import onnx

    proto = onnx.load(dynamic[0])
    calls = [node.op_type for node in proto.graph.node if node.domain == "ganglion"]
    assert len(calls) == 2 and set(calls) == {function.name for function in proto.functions}
    assert not [node for node in proto.graph.node if node.op_type == "Scan"]


def test_what_travels_in_the_file(dynamic):
    said = runtime.InferenceSession(dynamic[0]).get_modelmeta().custom_metadata_map
    found = {key: json.loads(value) for key, value in said.items()}
    assert found["architecture"] == "test_vmamba" and found["dynamic"] == ["batch", "size"]
    assert len(found["mean"]) == 3 and len(found["weights_sha256"]) == 64 and found["smallest_side"] == 4


def test_the_report_lies_beside_it(dynamic):
    path, report = dynamic
    saved = json.loads((path.parent / "net.onnx.json").read_text())
    assert saved.items() >= json.loads(json.dumps(report)).items()


@pytest.mark.parametrize("suffix", [".onnx", ".pt2", ".xml"])
def test_no_path_of_this_machine_travels(suffix, network, tmp_path):
    """Files are published."""
    if suffix == ".xml":
        pytest.importorskip("openvino", reason="NOT TESTED: openvino is not installed")
    path = tmp_path / f"net{suffix}"
    ganglion.export_model(network, path, size=32)
    content = path.read_bytes()
    for folder in (Path(__file__).parents[2], Path(torch.__file__).parents[1], tmp_path):
        assert os.fsencode(folder) not in content


def test_a_program_that_needs_torch_alone(network, tmp_path):
    """The proof runs where ganglion cannot be imported."""
    report = ganglion.export_model(network, tmp_path / "net.pt2", size=48)
    assert report["passed"] and report["max_relative_error"] < 1e-6
    program = torch.export.load(tmp_path / "net.pt2")
    assert "ganglion" not in str(program.graph)


def test_openvino_of_one_size_and_of_any(network, tmp_path):
    openvino = pytest.importorskip("openvino", reason="NOT TESTED: openvino is not installed")
    path = tmp_path / "net.xml"
    for dynamic in ((), ("batch", "size")):
        report = ganglion.export_model(network, path, size=(64, 48), dynamic=dynamic)
        assert report["passed"] and report["max_relative_error"] < 1e-5 and "openvino" in report["runtime"]
    assert {file.name for file in tmp_path.iterdir()} == {"net.xml", "net.bin", "net.xml.json"}
    said = openvino.Core().read_model(path).get_rt_info(["ganglion", "architecture"])
    assert json.loads(said.value) == "test_vmamba"
    (tmp_path / "net.bin").write_bytes(b"another's")
    with pytest.raises(FileExistsError, match=r"net\.bin is there already"):
        ganglion.export_model(network, path, size=64)


def test_weights_in_eight_bits(tmp_path):
    """A file of a quarter of the size; it computes what the network with those weights does, which is near."""
    torch.manual_seed(0)
    network = timm.create_model("test_vmamba", num_classes=10, depths=(1, 1), dims=(96, 160), pos_embed=False)
    images = torch.randn(40, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    before = copy.deepcopy(network.state_dict())
    full, small = (
        ganglion.export_model(
            network, tmp_path / "net.onnx", size=32, int8=int8, images=images if int8 else None
        )
        for int8 in (False, True)
    )
    assert small["megabytes"] < 0.45 * full["megabytes"] and small["max_relative_error"] < 1e-5
    found = small["int8"]
    assert (
        found["images"] == 40 and 1e-4 < found["max_relative_error"] < 0.05 and found["top1_agreement"] > 0.9
    )
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name])


def test_rounding_to_eight_bits():
    """Off by half a step at most, of each output channel; the scan's own parameters stay."""
    network = timm.create_model("test_vmamba", num_classes=64)
    small = with_int8_weights(network)
    kept = {"A_logs", "Ds", "x_proj_weight", "dt_projs_weight"}
    checked = 0
    for name, part in network.named_modules():
        for key, value in part.named_parameters(recurse=False):
            rounded = getattr(small.get_submodule(name), key)
            step = value.detach().abs().flatten(1).amax(1) / 127 if value.dim() > 1 else torch.zeros(1)
            chosen = isinstance(part, torch.nn.Linear | torch.nn.Conv2d) and key == "weight"
            if chosen and value.numel() >= LEAST:
                off = (rounded - value).abs().flatten(1).amax(1)
                assert (off <= 0.5001 * step).all() and off.max() > 0, name
                checked += 1
            else:
                assert torch.equal(rounded, value), name
    assert checked > 10 and kept <= {name.rpartition(".")[2] for name, _ in network.named_parameters()}


def test_a_program_that_a_compiler_takes(network):
    """What AOTInductor is given: no loop and no operator of ours. Compiling it takes a minute, more than a test may."""
    traced = trace(network, size=(48, 32), dynamic=("batch",))
    program = without_own_operators(traced.program, loop_free=True)
    assert not [n for n in program.graph.nodes if "ganglion" in str(n.target) or "scan" in str(n.target)]
    images = torch.randn(3, 3, 48, 32)
    with torch.no_grad():
        torch.testing.assert_close(program.module()(images)[0], network(images), rtol=1e-5, atol=1e-6)


class Translated(torch.nn.Module):
    """The operators that are translated here, since torch.onnx ties them to the size that was traced."""

    def __init__(self):
        super().__init__()
        self.conv, self.pool = torch.nn.Conv2d(3, 4, 1), torch.nn.AdaptiveAvgPool2d((3, 6))

    def forward(self, x):
        x = self.conv(x)
        shifts = (x.shape[2] // 2, -(x.shape[3] // 3))
        return {"rolled": torch.roll(x, shifts, (2, 3)), "pooled": self.pool(x), "mean": x.mean((2, 3))}


def test_operators_of_dynamic_sizes(tmp_path):
    """The proof runs them at three sizes, which 3 and 6 divide in different ways."""
    report = ganglion.export_model(
        Translated(), tmp_path / "ops.onnx", size=(40, 50), dynamic=("batch", "size")
    )
    assert report["outputs"] == ["rolled", "pooled", "mean"] and report["max_relative_error"] < 1e-6


@pytest.mark.parametrize(
    ("create", "name", "backbone", "outputs"),
    [
        (ganglion.create_detector, "mask_rcnn", "test_sparx_mamba", 15),
        (ganglion.create_segmentor, "upernet", "test_sparx_swin", 1),
    ],
)
def test_detectors_and_segmentors(create, name, backbone, outputs, tmp_path):
    model = create(name, backbone, num_classes=3, channels=16)
    report = ganglion.export_model(model, tmp_path / "dense.onnx", size=64)
    assert report["passed"] and len(report["outputs"]) == outputs


def test_the_code_of_the_page(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text = (Path(__file__).parents[2] / "docs" / "export.md").read_text()
    exec(re.search(r"^```python\n(.*?)^```", text, re.M | re.S)[1], {})
    assert capsys.readouterr().out.endswith("['logits']\n")
    for line in re.findall(r"^ganglion (export .+)$", text, re.M):
        assert _parser().parse_args(line.split()).output is not None, line


def test_pairs_of_layout_changes_are_taken_out(network, monkeypatch):
    traced = trace(network, size=64)
    with torch.no_grad():
        torch.testing.assert_close(traced.program.module()(traced.example), traced.network(traced.example))
    monkeypatch.setattr("ganglion.export.program.simplify", lambda program: None)
    before = trace(network, size=64)
    left, all_of_them = (
        sum(n.target is torch.ops.aten.permute.default for n in t.program.graph.nodes)
        for t in (traced, before)
    )
    assert left < 0.7 * all_of_them


def test_a_wrong_file_is_not_kept(network, tmp_path, monkeypatch):
    path = tmp_path / "net.onnx"
    form = module.FORMATS["onnx"]
    monkeypatch.setitem(module.FORMATS, "onnx", type(form)(suffix=".onnx", bound=0.0))
    with pytest.raises(ExportError, match="computes something else") as caught:
        ganglion.export_model(network, path, size=32)
    assert 0 < caught.value.report["max_relative_error"] < 1e-5
    assert list(tmp_path.iterdir()) == []


def test_what_is_refused_before_anything_is_computed(network, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "trace", None)
    foreign = tmp_path / "mine.onnx"
    foreign.write_bytes(b"another's")
    foreign.with_suffix(".bin").write_bytes(b"another's")
    for path, arguments, said in (
        (tmp_path / "a.tflite", {}, "unknown suffix '.tflite'. Expected one of .onnx, .pt2, .xml"),
        (tmp_path / "a.onnx", {"format": "pt2"}, "a file of pt2 has the suffix .pt2"),
        (tmp_path / "a.pt2", {"format": "aot"}, "Did you mean 'aoti'"),
        (tmp_path / "a.onnx", {"dynamic": "batch"}, "expected a sequence of names"),
        (tmp_path / "no" / "a.onnx", {}, "cannot write to the folder"),
        (foreign, {}, "was not written by an export"),
        (foreign.with_suffix(".xml"), {}, r"mine\.bin is there already"),
        (tmp_path / "a.onnx", {"int8": True, "images": torch.zeros(3, 32, 32)}, r"expected \(N, channels"),
        (tmp_path / "a.onnx", {"images": torch.zeros(1, 3, 32, 32)}, "images are for int8"),
        (tmp_path, {"format": "onnx"}, "has the suffix .onnx"),
    ):
        with pytest.raises((ValueError, OSError), match=said):
            ganglion.export_model(network, path, size=32, **arguments)
    assert foreign.read_bytes() == b"another's" and len(list(tmp_path.iterdir())) == 2


def test_sizes_and_dtypes_that_cannot_be(network, tmp_path):
    path = tmp_path / "a.onnx"
    for arguments, said in (
        ({"size": (2, 64), "dynamic": ("size",)}, "from 4 x 4 on"),
        ({"size": (64, 64, 3)}, "expected height and width"),
        ({"size": 64, "dynamic": ("bach",)}, "Did you mean 'batch'"),
    ):
        with pytest.raises(ValueError, match=said):
            ganglion.export_model(network, path, **arguments)
    with pytest.raises(ValueError, match=r"expected a network in float32"):
        ganglion.export_model(timm.create_model("test_vmamba").half(), path, size=64)
    assert list(tmp_path.iterdir()) == []


def test_missing_packages_are_named(network, tmp_path, monkeypatch):
    form = module.FORMATS["onnx"]
    monkeypatch.setitem(
        module.FORMATS, "onnx", type(form)(suffix=".onnx", bound=1e-5, packages=("no_such_package",))
    )
    with pytest.raises(ImportError, match=r"onnx needs no_such_package: pip install no_such_package"):
        ganglion.export_model(network, tmp_path / "a.onnx", size=32)


def test_the_command_refuses_without_weights_and_exports_with_them(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        main(["export", "test_vmamba", "-o", "a.onnx"])
    assert "--untrained" in capsys.readouterr().err and list(tmp_path.iterdir()) == []
    assert (
        main(["export", "test_vmamba", "-o", "a.onnx", "--untrained", "--size", "32", "--features", "--json"])
        == 0
    )
    report = json.loads(capsys.readouterr().out)
    assert report["outputs"] == [f"features_{i}" for i in range(4)]
    # Its own file may be written again; the network's mode is left alone.
    network = timm.create_model("test_vmamba", num_classes=3).train()
    assert ganglion.export_model(network, "a.onnx", size=32, softmax=True)["passed"] and network.training


def test_a_folder_that_timm_reads(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["export", "test_vmamba", "-o", "folder", "--untrained", "--seed", "3"]) == 0
    assert "no card" in capsys.readouterr().out
    assert sorted(p.name for p in Path("folder").iterdir()) == ["config.json", "model.safetensors"]
    torch.manual_seed(3)
    network = timm.create_model("test_vmamba").eval()
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        found = timm.create_model("local-dir:folder", pretrained=True).eval()(images)
        assert torch.equal(found, network(images))
        assert torch.equal(ganglion.load_model("folder").network(images), found)
    Path("mine").mkdir()
    Path("mine/config.json").write_text("{}")
    for argv, said in (
        (["-o", "mine"], "holds a network that no run of ours wrote"),
        (["-o", "other", "--int8"], "--int8: a folder has the network as it is"),
    ):
        with pytest.raises(SystemExit):
            main(["export", "test_vmamba", "--untrained", *argv])
        assert said in capsys.readouterr().err
    assert Path("mine/config.json").read_text() == "{}" and not Path("other").exists()
