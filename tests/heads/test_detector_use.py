"""A detector exported, compiled, saved; over timm's networks; any channels and sizes; where it is published."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch

import ganglion
from ganglion.heads import create_detector
from ganglion.heads.published import PUBLISHED_DETECTORS, published_detector

SMALL: dict[str, Any] = {"num_classes": 3, "channels": 8, "box_channels": 8}


@pytest.fixture(scope="module")
def detector():
    torch.manual_seed(0)
    return create_detector("mask_rcnn", "test_vmamba", **SMALL).eval()


class Dense(torch.nn.Module):
    def __init__(self, detector):
        super().__init__()
        self.detector = detector

    def forward(self, images):
        return self.detector.dense(images)


def flat(found):
    return [tensor for part in found for tensor in part]


def test_the_dense_part_is_exported_for_any_size(detector):
    dense = Dense(detector)
    batch, height, width = (torch.export.Dim.AUTO for _ in range(3))
    program = torch.export.export(
        dense, (torch.randn(2, 3, 224, 288),), dynamic_shapes=({0: batch, 2: height, 3: width},), strict=False
    )
    for shape in ((2, 3, 224, 288), (3, 3, 320, 256)):
        x = torch.randn(shape)
        with torch.no_grad():
            for a, b in zip(flat(program.module()(x)), flat(dense(x)), strict=True):
                torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_the_dense_part_has_no_graph_breaks(detector):
    dense, x = Dense(detector), torch.randn(1, 3, 64, 64)
    compiled = torch.compile(dense, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        for a, b in zip(flat(compiled(x)), flat(dense(x)), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backbone", ["test_resnet.r160_in1k", "test_sparx_mamba"])
def test_saves_and_loads_its_own_checkpoint(backbone, tmp_path):
    made = create_detector("mask_rcnn", backbone, **SMALL).eval()
    torch.save({"state_dict": made.state_dict()}, tmp_path / "own.pth")
    again = create_detector("mask_rcnn", backbone, **SMALL).eval()
    assert ganglion.load_checkpoint(again, tmp_path / "own.pth").complete
    for name, tensor in made.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


def test_any_channels_and_sizes():
    made = create_detector(
        "mask_rcnn", "test_vmamba", backbone_args={"in_chans": 5}, score_threshold=0.0, **SMALL
    )
    images = [torch.randn(5, 33, 71), torch.randn(5, 90, 47), torch.randn(5, 1, 1)]
    with torch.no_grad():
        found = made.eval()(images)
    for image, entry in zip(images, found, strict=True):
        assert entry["masks"].shape == (len(entry["boxes"]), *image.shape[1:])
        assert entry["masks"].dtype == torch.bool
        assert (entry["scores"].diff() <= 0).all()
        if len(entry["boxes"]):
            assert (
                entry["boxes"][:, 2].max() <= image.shape[2] and entry["boxes"][:, 3].max() <= image.shape[1]
            )


def test_published_detectors_name_what_there_is():
    assert len(PUBLISHED_DETECTORS) == 12
    assert len({entry.url for entry in PUBLISHED_DETECTORS.values()}) == 12
    for entry in PUBLISHED_DETECTORS.values():
        assert timm.is_model(entry.backbone)
        assert entry.url.startswith("https://") and entry.url.endswith(".pth")
    with pytest.raises(ValueError, match=r"mask_rcnn\.vmamba_tiny\.1x"):
        published_detector("mask_rcnn.vmamba_tiny.x1")
