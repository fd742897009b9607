"""Every rule of the published Mask R-CNN by itself, and those of torchvision's that differ."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from ganglion.heads import boxes, masks
from tests.heads.goldens import golden

STRIDES = (4, 8, 16, 32)
RATIOS = (0.5, 1.0, 2.0)


def unit(name: str) -> Tensor:
    return golden("mask_rcnn")[f"unit.{name}"]


def bits(name: str, width: int) -> Tensor:
    return torch.from_numpy(np.unpackbits(unit(name).numpy(), axis=2)[:, :, :width].astype(bool))


def test_anchors():
    made = boxes.anchors([(1, 1)] * 5, (*STRIDES, 64), 8.0, RATIOS)
    assert torch.equal(torch.stack(made), unit("base_anchors"))
    (made,) = boxes.anchors([(3, 2)], (64,), 8.0, RATIOS)
    assert torch.equal(made, unit("grid_anchors_level4"))


def test_cells_that_begin_inside():
    inside = boxes.cells_inside([(2, 3), (1, 2)], (4, 8), (5, 8), 2)
    assert inside.tolist() == [True, True, True, True, False, False] * 2 + [True, True, False, False]


def test_deltas():
    boxes_, deltas = unit("boxes"), unit("deltas")
    for scale, stds, name in ((1, (1.0,) * 4, "decode_rpn"), (5, (0.1, 0.1, 0.2, 0.2), "decode_box_head")):
        decoded = boxes.clip(boxes.decode(boxes_, scale * deltas, stds), (140, 160))
        torch.testing.assert_close(decoded, unit(name), rtol=0, atol=1e-9)
    encoded = boxes.encode(boxes_, unit("gt"), (0.1, 0.1, 0.2, 0.2))
    torch.testing.assert_close(encoded, unit("encode_box_head"), rtol=0, atol=1e-6)


def test_assignment():
    priors, objects = unit("priors"), unit("assign_gt")
    rpn = boxes.assign(priors, objects, negative_below=0.3, positive_from=0.7, low_quality_from=0.3)
    head = boxes.assign(priors, objects, negative_below=0.5, positive_from=0.5, low_quality_from=0.5)
    assert torch.equal(rpn, unit("assign_rpn")) and torch.equal(head, unit("assign_box_head"))
    low = boxes.assign(
        unit("low_priors"), unit("low_gt"), negative_below=0.5, positive_from=0.5, low_quality_from=0.5
    )
    assert torch.equal(low, unit("low_assign_box_head"))
    nothing = boxes.assign(priors, objects[:0], negative_below=0.5, positive_from=0.5, low_quality_from=0.5)
    assert not nothing.any() and len(nothing) == len(priors)


def test_sampling():
    torch.manual_seed(0)
    assigned = torch.tensor([2, 0, -1, 1, 0, 3, 0, 1, 0, 0])
    positive, negative = boxes.sample(assigned, 6, 0.5)
    assert len(positive) == len(negative) == 3
    assert (assigned[positive] > 0).all() and (assigned[negative] == 0).all()
    positive, negative = boxes.sample(assigned, 20, 0.5)
    assert positive.tolist() == [0, 3, 5, 7] and negative.tolist() == [1, 4, 6, 8, 9]
    drawn = {tuple(boxes.sample(assigned, 2, 1.0)[0].tolist()) for _ in range(40)}
    assert len(drawn) > 3  # at random


def test_levels_and_features():
    rois = unit("rois")
    assert torch.equal(masks.levels(rois[:, 1:], 4), unit("roi_levels"))
    maps = [
        torch.from_numpy(np.random.default_rng([0, i]).standard_normal((2, 4, 512 // s, 512 // s)))
        for i, s in enumerate(STRIDES)
    ]
    order = torch.cat([(rois[:, 0] == i).nonzero()[:, 0] for i in (0, 1)])
    of_images = [rois[rois[:, 0] == i, 1:] for i in (0, 1)]
    for side, channels in ((7, 4), (14, 2)):
        found = masks.region_features(maps, STRIDES, of_images, side)[:, :channels]
        torch.testing.assert_close(found, unit(f"roi_align{side}")[order], rtol=0, atol=1e-10)


def test_masks_are_cut_out_and_pasted():
    cut = masks.mask_targets(bits("masks", 70), unit("mask_inds"), unit("mask_boxes"), 28)
    assert torch.equal(cut.bool(), bits("mask_targets", 28))
    drawn = np.random.default_rng([0, 9]).standard_normal((5, 1, 28, 28))
    pasted = masks.paste(torch.sigmoid(3 * torch.from_numpy(drawn))[:, 0], unit("paste_boxes"), (60, 70))
    assert torch.equal(pasted, bits("pasted", 70))
    outside = torch.tensor([[-30.0, -30, -20, -20], [80, 10, 90, 20], [5, 5, 5, 9]])
    assert not masks.paste(torch.ones(3, 28, 28), outside, (60, 70)).any()


def test_suppression_within_each_class():
    box, score = unit("nms_boxes"), unit("nms_scores")[:, :3]
    row, label = (score > 0.05).nonzero().unbind(1)
    kept = boxes.suppress(box[row, label], score[row, label], label, 0.5)[:20]
    expected = unit("nms_dets")
    found = torch.cat([box[row, label][kept], score[row, label][kept, None]], dim=1)
    torch.testing.assert_close(found, expected.to(found), rtol=0, atol=1e-6)
    assert torch.equal(label[kept], unit("nms_labels"))


@pytest.mark.parametrize("size", [(1, 1), (7, 300)])
def test_boxes_are_cut_to_the_image(size):
    found = boxes.clip(torch.tensor([[-5.0, -5, 500, 500]]), size)
    assert found.tolist() == [[0, 0, size[1], size[0]]]
