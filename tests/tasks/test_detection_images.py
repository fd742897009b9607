"""An image and its objects through detection's pipeline: sizes, flips, and crops, against numbers."""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest
import torch

from ganglion.tasks.detection import transforms


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((480, 640), (800, 1067)),
        ((427, 640), (800, 1199)),
        ((375, 500), (800, 1067)),
        ((300, 900), (444, 1333)),
        ((1, 1), (800, 800)),
    ],
)
def test_the_size_that_keeps_the_ratio(size, expected):
    assert transforms.new_size(size, 1333, 800) == expected


def objects(height=50, width=70):
    polygon = [[10, 20, 30, 20, 30, 45, 10, 45]]
    entry = {"bbox": [10, 20, 20, 25], "label": 1, "iscrowd": 0, "segmentation": polygon}
    target = {"size": (height, width), "annotations": [entry, entry | {"iscrowd": 1}]}
    return transforms.objects_of(torch.zeros(3, height, width, dtype=torch.uint8), target)


def test_boxes_and_masks_go_with_the_image():
    made = objects()
    assert made["boxes"].tolist() == [[10, 20, 30, 45]]
    assert int(made["masks"].sum()) == 20 * 25
    twice = transforms.scaled(made, 140, 100)
    assert twice["boxes"].tolist() == [[20, 40, 60, 90]]
    assert int(twice["masks"].sum()) == 40 * 50
    turned = transforms.flipped(made)
    assert turned["boxes"].tolist() == [[40, 20, 60, 45]]
    assert turned["masks"][0, 20:45, 40:60].all()


def test_detr_scales_and_crops():
    random.seed(0)
    sizes, small = set(), 0
    config = {"input_size": [3, 800, 1333], "mean": [0.5] * 3, "std": [0.5] * 3}
    augment = transforms.Augment(config, transforms.DetectionAugmentation(scales="detr", hflip=0.5))
    polygon = [[100, 100, 300, 100, 300, 300, 100, 300]]
    entry = {"bbox": [100, 100, 200, 200], "label": 0, "iscrowd": 0, "segmentation": polygon}
    image = torch.zeros(3, 480, 640, dtype=torch.uint8)
    for _ in range(12):
        pixels, target = augment(image, {"size": (480, 640), "annotations": [entry]})
        sizes.add(min(pixels.shape[1:]))
        small += len(target["boxes"]) == 0
        assert target["masks"].shape[1:] == pixels.shape[1:]
        if len(target["boxes"]):
            x0, _, _, y1 = target["boxes"][0].tolist()
            ys, xs = target["masks"][0].nonzero().unbind(1)
            assert abs(int(xs.min()) - x0) < 3 and abs(int(ys.max()) + 1 - y1) < 3
    assert max(sizes) <= 800
    assert len(sizes) > 4


class Chosen:
    """In place of `random`: the first choice, the largest number, and a record of what there was to choose from."""

    def __init__(self, *coins: float):
        self.coins, self.choices, self.ranges = list(coins), [], []

    def random(self) -> float:
        return self.coins.pop(0)

    def choice(self, options):
        self.choices.append(tuple(options))
        return options[0]

    def randint(self, low: int, high: int) -> int:
        self.ranges.append((low, high))
        return high


@pytest.mark.parametrize("coin", [0.49, 0.51])
def test_the_two_ways_of_the_3x_schedule(coin, monkeypatch):
    """Published: one of 11 short sides; or, half of the time, 400, 500 or 600, a crop, then one of the 11."""
    chosen = Chosen(0.99, coin)  # not flipped
    monkeypatch.setattr(transforms, "random", chosen)
    config = {"input_size": [3, 800, 1333], "mean": [0.5] * 3, "std": [0.5] * 3}
    augment = transforms.Augment(config, transforms.DetectionAugmentation(scales="detr"))
    pixels, _ = augment(torch.zeros(3, 375, 500, dtype=torch.uint8), {"size": (375, 500), "annotations": []})
    sides = (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)
    if coin < 0.5:
        # 375 x 500 becomes 400 x 533; of that at most 600 is cut out, at the far end.
        assert chosen.choices == [(400, 500, 600), sides]
        assert chosen.ranges == [(384, 400), (384, 533), (0, 0), (0, 0)]
    else:
        assert (chosen.choices, chosen.ranges) == ([sides], [])
    assert tuple(pixels.shape[1:]) == (480, 640)


def test_what_a_crop_keeps():
    """Boxes with something of them inside, cut and not made anew from their masks, which may be empty."""
    polygon = [[0, 0, 10, 0, 10, 10, 0, 10]]
    entries = [
        {"bbox": box, "label": i, "iscrowd": 0, "segmentation": polygon}
        for i, box in enumerate(([0, 0, 10, 10], [0, 0, 450, 10], [395, 0, 10, 10], [0, 100, 400, 10]))
    ]
    made = transforms.objects_of(
        torch.zeros(3, 384, 800, dtype=torch.uint8), {"size": (384, 800), "annotations": entries}
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transforms, "random", SimpleNamespace(randint=lambda low, high: min(high, 400)))
        cut = transforms.cropped(made)  # 384 x 400, from column 400 on
    assert tuple(cut["pixels"].shape[1:]) == (384, 400)
    assert cut["labels"].tolist() == [1, 2]
    assert cut["boxes"].tolist() == [[0, 0, 50, 10], [0, 0, 5, 10]]
    assert cut["masks"].shape == (2, 384, 400) and not cut["masks"].any()


def test_a_crop_has_sides_from_384_to_600():
    made = objects(700, 900)
    for seed in range(20):
        random.seed(seed)
        height, width = transforms.cropped(made)["pixels"].shape[1:]
        assert 384 <= height <= 600
        assert 384 <= width <= 600
