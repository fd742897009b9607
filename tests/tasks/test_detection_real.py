"""Detection on real photographs with COCO's own annotations: crowds, gaps between the categories, run lengths."""

from __future__ import annotations

import contextlib
import io
import json

import numpy as np
import pytest
import torch

from ganglion.data import Batch, CocoSource
from ganglion.tasks.detection import rle, transforms
from ganglion.tasks.detection.metrics import CocoMetrics

from ..real_data import real_data


@pytest.fixture(scope="module")
def coco():
    return real_data("coco_mini")


@pytest.fixture(scope="module")
def source(coco) -> CocoSource:
    return CocoSource(coco / "annotations" / "instances_val2017.json", coco / "val2017")


def near(source: CocoSource) -> tuple[list[dict], list[dict]]:
    """Detections near the objects of every image: moved boxes and masks, some of another class, some missing."""
    rng = np.random.default_rng(0)
    outputs, targets = [], []
    for item in source.targets():
        height, width = item["size"]
        boxes, masks, labels = [], [], []
        for a in item["annotations"]:
            if rng.random() < 0.15:
                continue
            dx, dy = (int(v) for v in rng.integers(-6, 7, 2))
            x, y, w, h = a["bbox"]
            boxes.append([x + dx, y + dy, x + dx + w, y + dy + h])
            masks.append(np.roll(rle.bitmap(a["segmentation"], height, width), (dy, dx), (0, 1)).astype(bool))
            labels.append(a["label"] if rng.random() < 0.85 else int(rng.integers(80)))
        found = {
            "boxes": torch.tensor(boxes, dtype=torch.float64).reshape(-1, 4),
            "scores": torch.from_numpy(rng.random(len(boxes))),
            "labels": torch.tensor(labels, dtype=torch.long),
            "masks": torch.from_numpy(np.stack(masks))
            if masks
            else torch.zeros(0, height, width, dtype=torch.bool),
        }
        outputs.append(found)
        targets.append({key: item[key] for key in ("image_id", "size", "annotations")})
    return outputs, targets


def test_average_precision_is_pycocotools(coco, source):
    """Boxes, masks, recall and every class, with COCO's crowds, to 1e-6."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    outputs, targets = near(source)
    made = CocoMetrics(source.class_names or [])
    for output, target in zip(outputs, targets, strict=True):
        made.update([output], Batch(torch.empty(0), [target], []))
    assert any(a["iscrowd"] for target in targets for a in target["annotations"])
    found = made.values()
    results = [
        {
            "image_id": target["image_id"],
            "category_id": source.category_ids[int(label)],
            "score": float(score),
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "segmentation": rle.encode(mask.numpy()),
        }
        for output, target in zip(outputs, targets, strict=True)
        for (x0, y0, x1, y1), score, label, mask in zip(
            output["boxes"].tolist(), output["scores"], output["labels"], output["masks"], strict=True
        )
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(coco / "annotations" / "instances_val2017.json"))
        for kind, name, left in (("bbox", "box", "segmentation"), ("segm", "mask", "bbox")):
            kept = [{key: value for key, value in r.items() if key != left} for r in results]
            oracle = COCOeval(truth, truth.loadRes(kept), kind)
            oracle.evaluate()
            oracle.accumulate()
            oracle.summarize()
            names = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar1", "ar10", "ar100")
            for key, value in zip(names, oracle.stats, strict=False):
                assert found[f"{name}_{key}"] == pytest.approx(100 * value, abs=1e-6), (name, key)
            precision = oracle.eval["precision"][:, :, :, 0, -1]
            for k, row in enumerate(made.classes(name)):
                there = precision[:, :, k]
                expected = 100 * there[there > -1].mean() if (there > -1).any() else -1
                assert row[0] == pytest.approx(expected, abs=1e-6), (name, k)
    assert 10 < found["mask_ap"] < found["box_ap"] < 95


def test_labels_follow_cocos_ids(source):
    assert len(source.class_names or ()) == 80
    assert (source.category_ids[0], source.category_ids[-1]) == (1, 90)
    content = json.loads(source.path.read_text())
    assert sum(len(item["annotations"]) for item in source.targets()) == len(content["annotations"])
    assert source.note == ""


def test_resizing_is_opencvs(source):
    """uint8, bilinear without antialiasing: 0.03 % of the values differ by one."""
    cv2 = pytest.importorskip("cv2")
    for index in range(0, len(source), 12):
        pixels = transforms.to_pixels(source.image(index)[0])
        for sides in ((1333, 800), (1333, 480), (400, 300)):
            size = transforms.new_size(pixels.shape[1:], *sides)
            ours = transforms.resize(pixels, size).permute(1, 2, 0).numpy().astype(int)
            theirs = cv2.resize(pixels.permute(1, 2, 0).numpy(), size[::-1], interpolation=cv2.INTER_LINEAR)
            off = np.abs(ours - theirs.astype(int))
            assert off.max() <= 1
            assert (off > 0).mean() < 1e-3


def test_masks_fit_their_boxes_after_every_augmentation(coco):
    """Of real polygons: a mask's extent is its box within the pixels that resizing to the nearest pixel moves."""
    source = CocoSource(
        coco / "annotations" / "instances_train2017.json", coco / "train2017", training=True, limit=6
    )
    config = {"input_size": [3, 320, 533], "mean": [0.5] * 3, "std": [0.5] * 3}
    augmentation = transforms.DetectionAugmentation(scales="one", hflip=1.0)
    augment = transforms.Augment(config, augmentation)
    seen = 0
    for index in range(len(source)):
        pixels, target = augment(*source.image(index))
        assert min(pixels.shape[1:]) <= 320 and max(pixels.shape[1:]) <= 533
        for box, mask in zip(target["boxes"], target["masks"], strict=True):
            ys, xs = mask.nonzero().unbind(1)
            if not len(ys):
                continue
            seen += 1
            extent = torch.stack([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]).float()
            assert (extent - box).abs().max() < 2.5
    assert seen > 10
