"""Published checkpoints of detectors and segmentors, there and back."""

from __future__ import annotations

import json

import pytest
import timm
import torch

import ganglion
from ganglion import CheckpointError
from ganglion.heads import create_detector, create_segmentor, to_official
from tests.golden_data import GOLDEN
from tests.heads.goldens import built, weights

#: Float64, for the bounds of the golden data, is served by the slower backend.
pytestmark = pytest.mark.filterwarnings("ignore:.*runs on the slower backend.*float64")

PUBLISHED = json.loads((GOLDEN / "dense" / "names.json").read_text())


def create(name: str, backbone: str, **arguments):
    make = create_detector if name == "mask_rcnn" else create_segmentor
    return make(name, backbone, **arguments)


@pytest.mark.parametrize("name", PUBLISHED)
def test_names_shapes_and_parameters_at_full_size(name):
    head, _, backbone = name.partition(".")
    expected = PUBLISHED[name]
    given = {"learned_scale": False} if backbone.startswith("sparx") else {}
    with torch.device("meta"):
        model = create(head, backbone, backbone_args=given)
    assert sum(p.numel() for p in model.parameters()) == expected["params"]
    found = {key: list(t.shape) for key, t in to_official(model).items()}
    assert found == dict(expected["state_dict"])


def test_the_learned_scale_of_sparx_detectors():
    with torch.device("meta"):
        model = create_detector("mask_rcnn", "sparx_mamba_tiny")
    assert sum(p.numel() for p in model.parameters()) == 46_732_001


@pytest.mark.parametrize("name", ["mask_rcnn", "upernet", "semantic_fpn"])
def test_there_and_back(name, tmp_path):
    published = weights(name)
    back = to_official(built(name, torch.float64))
    assert back.keys() == published.keys()
    for key, tensor in published.items():
        assert torch.equal(back[key].to(tensor.dtype), tensor), key


def test_what_does_not_fit_is_an_error_and_changes_nothing():
    published = weights("semantic_fpn")
    meta = {"num_classes": 150, "backbone_args": {"depths": [1, 1, 2, 1], "dims": [16, 32, 64, 128]}}
    model = create_segmentor("semantic_fpn", "vmamba_tiny_s1l8", **meta)
    before = {key: t.clone() for key, t in model.state_dict().items()}
    missing = {k: v for k, v in published.items() if k != "decode_head.scale_heads.1.0.bn.bias"}
    more = published | {"decode_head.extra.weight": torch.zeros(3)}
    other = create_segmentor("semantic_fpn", "vmamba_tiny_s1l8", **meta | {"num_classes": 3})
    for source, said in ((missing, "scale_heads.1.0.bn.bias"), (more, "decode_head.extra.weight")):
        with pytest.raises(CheckpointError, match=said):
            ganglion.load_checkpoint(model, {"state_dict": source})
    with pytest.raises(
        CheckpointError, match=r"decode_head.conv_seg.weight is \(150, 128, 1, 1\), the model's is \(3,"
    ):
        ganglion.load_checkpoint(other, {"state_dict": published})
    assert all(torch.equal(t, before[key]) for key, t in model.state_dict().items())


def test_a_classifier_begins_a_detector():
    classifier = timm.create_model("test_vmamba", num_classes=7)
    detector = create_detector("mask_rcnn", "test_vmamba", num_classes=2, channels=8, box_channels=8)
    report = ganglion.load_checkpoint(detector, {"model": classifier.state_dict()}, strict=False)
    stem = detector.backbone.network.model.stem[0].conv.weight
    assert torch.equal(stem, classifier.stem[0].conv.weight)
    assert all("out_norms" in name for name in report.missing)
    assert not any(name.startswith(("neck", "rpn", "box", "mask")) for name in report.missing)


def test_own_state_dicts_and_wrappers():
    model = create_segmentor("upernet", "test_sparx_mamba", num_classes=3, channels=8, aux_channels=4)
    for p in model.parameters():
        torch.nn.init.normal_(p)
    again = create_segmentor("upernet", "test_sparx_mamba", num_classes=3, channels=8, aux_channels=4)
    wrapped = {f"module.{key}": t for key, t in model.state_dict().items()}
    assert ganglion.load_checkpoint(again, {"state_dict": wrapped}).complete
    for key, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], tensor), key
