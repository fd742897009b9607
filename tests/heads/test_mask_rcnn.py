"""Mask R-CNN against the published one."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from torch import Tensor

from ganglion.heads import boxes, create_detector
from ganglion.models import weight_names
from tests.heads.goldens import built, golden, image

#: Float64, for the bounds of the golden data, is served by the slower backend.
pytestmark = pytest.mark.filterwarnings("ignore:.*runs on the slower backend.*float64")

#: Relative to the standard deviation; boxes in pixels; scores; relative error of losses.
BOUNDS = {torch.float64: (1e-8, 1e-8, 1e-8, 1e-7), torch.float32: (1e-4, 0.02, 2e-4, 1e-5)}


def images(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    meta = golden("mask_rcnn").meta
    return [
        image(1, *entry["img_shape"], meta["input_seed"] + i, dtype=dtype)[0]
        for i, entry in enumerate(meta["images"])
    ]


def targets(*, empty_second: bool = False) -> list[dict[str, Tensor]]:
    """Boxes, labels, and ellipses in the boxes as masks."""
    meta = golden("mask_rcnn").meta
    height, width = meta["padded"]
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    made = []
    for i, entry in enumerate(meta["images"]):
        box = torch.tensor(entry["boxes"], dtype=torch.float64)[: 0 if i and empty_second else None]
        (cx, cy), (rx, ry) = ((box[:, :2] + box[:, 2:]).T / 2, (box[:, 2:] - box[:, :2]).T / 2)
        inside = ((x - cx[:, None, None]) / rx[:, None, None]) ** 2 + (
            (y - cy[:, None, None]) / ry[:, None, None]
        ) ** 2 <= 1
        made.append({"boxes": box, "labels": torch.tensor(entry["labels"])[: len(box)], "masks": inside})
    return made


@pytest.mark.parametrize("dtype", BOUNDS)
@torch.no_grad()
def test_maps_proposals_and_detections(dtype):
    reference, model = golden("mask_rcnn"), built("mask_rcnn", dtype)
    bound, pixels, of_score, _ = BOUNDS[dtype]
    batch, extents = model.batch(images(dtype))
    assert list(batch.shape[2:]) == reference.meta["padded"]
    maps, logits, deltas = model.dense(batch)
    for i in range(5):
        for name, found in (("fpn", maps), ("rpn_cls", logits), ("rpn_reg", deltas)):
            assert reference.summary_error(f"{name}{i}", found[i]) < bound, (name, i)
    for i, (found, _) in enumerate(model.propose(logits, deltas, extents, 1000)):
        # As sets: rounding may swap neighbours in rank.
        distance = torch.cdist(found.double(), reference[f"im{i}.proposals"], p=float("inf")).min(1).values
        assert len(found) == 1000 and distance.max() < pixels
    sizes = [entry["ori_shape"] for entry in reference.meta["images"]]
    for i, found in enumerate(model(images(dtype), sizes)):
        expected = {name: reference[f"im{i}.{name}"] for name in ("boxes", "scores", "labels")}
        assert torch.equal(found["labels"], expected["labels"])
        assert (found["boxes"] - expected["boxes"]).abs().max() < pixels
        assert (found["scores"] - expected["scores"]).abs().max() < of_score
        area = found["masks"].sum((1, 2))
        assert found["masks"].dtype == torch.bool and found["masks"].shape[1:] == tuple(sizes[i])
        assert (area - reference[f"im{i}.mask_area"]).abs().max() <= 8
        column = torch.arange(sizes[i][1])
        assert ((found["masks"] * column).sum((1, 2)) - reference[f"im{i}.mask_sum_x"]).abs().max() <= 8 * 241


@torch.no_grad()
def test_without_sizes_results_are_in_the_images_frames():
    model, given = built("mask_rcnn", torch.float32), images(torch.float32)
    for i, found in enumerate(model(given)):
        expected = golden("mask_rcnn")[f"im{i}.boxes_resized"]
        assert (found["boxes"] - expected).abs().max() < 0.02
        assert found["masks"].shape[1:] == given[i].shape[1:]


def test_losses_and_gradients(monkeypatch):
    """Each of the published cases: all boxes, the first of them, no object in the second image."""
    reference = golden("mask_rcnn")
    model = copy.deepcopy(built("mask_rcnn"))
    monkeypatch.setattr(boxes, "choose", lambda indices, count: indices[:count])
    published = model.config
    for case, expected in reference.meta["training"].items():
        many = {} if case == "first" else {"rpn_samples": 10**9, "box_samples": 10**9}
        model.config = dataclasses.replace(published, **many)
        losses = model.loss(images(), targets(empty_second=case == "empty_all"))
        for name, value in expected["losses"].items():
            assert losses[name].item() == pytest.approx(value, rel=BOUNDS[torch.float64][3]), (case, name)
        assert sum(losses.values()).item() == pytest.approx(expected["total"], rel=1e-7)
        if case == "first":
            model.zero_grad()
            sum(losses.values()).backward()
            grads = {name: p.grad for name, p in model.named_parameters()}
            for key in [
                k.removesuffix(".mean")
                for k in reference.arrays
                if k.startswith("grad.") and k.endswith("mean")
            ]:
                ours = weight_names.rename(key.removeprefix("grad."), model.official_names)
                if ours in grads:
                    assert reference.summary_error(key, grads[ours]) < 1e-5, key


def tiny(**arguments):
    torch.manual_seed(0)
    return create_detector(
        "mask_rcnn", "test_vmamba", num_classes=3, backbone_args=arguments, channels=16, box_channels=16
    )


def test_training_reaches_every_parameter():
    model = tiny()
    x = [torch.randn(3, 70, 50), torch.randn(3, 40, 90)]
    of_first = {
        "boxes": torch.tensor([[5.0, 6, 40, 60], [20, 30, 30, 45]]),
        "labels": torch.tensor([2, 0]),
        "masks": torch.ones(2, 70, 50, dtype=torch.bool),
    }
    nothing = {
        "boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long), "masks": torch.zeros(0, 40, 90)
    }  # fmt: skip
    losses = model.loss(x, [of_first, nothing])
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    alone = model.loss(x[1:], [nothing])
    assert alone["loss_mask"].item() == alone["loss_bbox"].item() == alone["loss_rpn_bbox"].item() == 0
    sum(alone.values()).backward()


@torch.no_grad()
def test_any_channels_and_sizes():
    model = tiny(in_chans=2).eval()
    found = model([torch.randn(2, 1, 1), torch.randn(2, 33, 95)])
    assert [f["masks"].shape[1:] for f in found] == [(1, 1), (33, 95)]
    for f in found:
        assert f["boxes"].shape == (len(f["scores"]), 4) and f["scores"].diff().le(0).all()
    alone = model([torch.randn(2, 64, 64)])[0]
    assert set(alone) == {"boxes", "scores", "labels", "masks"}


def test_wrong_input_is_named():
    model, x = tiny(), torch.zeros(3, 40, 40)
    good = {
        "boxes": torch.tensor([[1.0, 2, 9, 8]]),
        "labels": torch.tensor([0]),
        "masks": torch.zeros(1, 40, 40),
    }
    wrong = {
        r"targets\[0\]: labels from 3 to 3, expected 0 to 2": good | {"labels": torch.tensor([3])},
        r"box 0 is \[9.0, 8.0, 3.0, 4.0\].*not x, y, width": good | {"boxes": torch.tensor([[9.0, 8, 3, 4]])},
        r"boxes have shape \(1, 5\), expected \(1, 4\)": good | {"boxes": torch.zeros(1, 5)},
        r"masks have shape \(2, 40, 40\), expected \(1, 40, 40\)": good | {"masks": torch.zeros(2, 40, 40)},
        r"targets\[0\] has no 'masks'": {k: v for k, v in good.items() if k != "masks"},
    }
    for message, target in wrong.items():
        with pytest.raises(ValueError, match=message):
            model.loss([x], [target])
    with pytest.raises(ValueError, match="1 images and 2 targets"):
        model.loss([x], [good, good])
    with pytest.raises(ValueError, match="images is empty"):
        model([])
    with pytest.raises(ValueError, match=r"images\[1\] has shape \(1, 40, 40\): expected \(3, h, w\)"):
        model([x, x[:1]])


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_the_dense_part_is_exported():
    class Dense(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.detector = tiny().eval()

        def forward(self, x: Tensor):
            return self.detector.dense(x)

    # The last level's map has a pixel for 64: sides above that, so that it has two.
    dense, x = Dense(), torch.randn(2, 3, 160, 192)
    dims = {
        0: torch.export.Dim("b", min=1),
        2: torch.export.Dim("h", min=65),
        3: torch.export.Dim("w", min=65),
    }
    program = torch.export.export(dense, (x,), dynamic_shapes=({**dims},)).module()
    for shape in ((2, 3, 160, 192), (1, 3, 96, 128)):
        x = torch.randn(*shape)
        for found, expected in zip(program(x), dense(x), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
