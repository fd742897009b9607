"""COCO's average precision of boxes and masks, by faster-coco-eval, which equals pycocotools."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torchvision.ops import box_convert, box_iou

from ...data import Batch, CocoSource, DataError
from ...training.metrics import Monitor
from ..evaluation import Labelled, Request
from ..loading import LoadedModel
from . import rle
from .transforms import Resize, collate

MONITOR: Monitor = ("box_ap", "max")

#: COCO's summary, in its order, as far as it is shown.
_SUMMARY = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar1", "ar10", "ar100")
_KINDS = {"box": "bbox", "mask": "segm"}


class CocoMetrics:
    """Detections of the images seen so far, and what is in these images; numbers when somebody asks.

    box_ap, mask_ap, ...: percent. ap: mean over IoU 0.50 to 0.95 and over the classes that have objects; ap50, ap75: of
    one IoU; ap_small, ap_medium, ap_large: of objects below 32^2, to 96^2 and above; ar1, ar10, ar100: recall with so
    many detections an image. -1 where there is no such object. Crowds count neither way.

    An image counts once, however often it was seen; the order of the batches does not matter.
    """

    TITLES: Mapping[str, str] = {
        f"{kind}_{name}": f"{kind} {name[:2].upper()}{name[2:].replace('_', ' ')} %"
        for kind in _KINDS
        for name in _SUMMARY
    }

    def __init__(self, class_names: Sequence[str] = ()) -> None:
        self.class_names = list(class_names)
        self._seen: dict[Any, dict[str, Any]] = {}
        self.not_finite = 0

    def update(self, output: list[dict[str, Tensor]], batch: Batch) -> None:
        """Add a batch. output: of `MaskRCNN`, in the frame of the files. Targets without image_id do not count."""
        targets: Any = batch.targets
        for found, target in zip(output, targets, strict=True):
            if "image_id" not in target:
                continue
            finite = bool(found["boxes"].isfinite().all() and found["scores"].isfinite().all())
            self.not_finite += not finite
            self._seen[target["image_id"]] = {
                "size": target["size"],
                "objects": target["annotations"],
                "detections": detections(found) if finite else [],
            }

    @property
    def images(self) -> int:
        return len(self._seen)

    def reduce(self) -> CocoMetrics:
        """All processes' images; to be called by all of them."""
        total = CocoMetrics(self.class_names)
        parts: list[Any] = [(self._seen, self.not_finite)]
        if dist.is_available() and dist.is_initialized():
            parts = [None] * dist.get_world_size()
            dist.all_gather_object(parts, (self._seen, self.not_finite))
        for seen, not_finite in parts:
            total._seen |= seen
            total.not_finite += not_finite
        return total

    def values(self) -> dict[str, float]:
        found = {}
        for kind in _KINDS:
            stats = self.evaluate(kind)
            for i, name in enumerate(_SUMMARY):
                value = float("nan") if stats is None else float(stats.stats[i])
                found[f"{kind}_{name}"] = 100 * value if value >= 0 else value
        return found

    def per_class(self, kind: str = "box") -> list[float]:
        """AP of each class in percent, -1 for one without objects."""
        stats = self.evaluate(kind)
        if stats is None:
            return []
        precision_TRKAM = stats.eval["precision"]
        return [
            100 * float(p[p > -1].mean()) if (p > -1).any() else -1.0
            for p in np.moveaxis(precision_TRKAM[:, :, :, 0, -1], 2, 0)
        ]

    def missed(self, count: int = 20) -> list[tuple[Any, int]]:
        """The images of which most objects have no box of their class with an IoU of 0.5, and how many; worst first."""
        lost = []
        for key in self._ids():
            entry, missing = self._seen[key], 0
            for a in (a for a in entry["objects"] if not a["iscrowd"]):
                same = [d["bbox"] for d in entry["detections"] if d["label"] == a["label"]]
                boxes = box_convert(torch.tensor([a["bbox"], *same], dtype=torch.float64), "xywh", "xyxy")
                missing += not bool((box_iou(boxes[:1], boxes[1:]) >= 0.5).any())
            lost.append((key, missing))
        return sorted((item for item in lost if item[1]), key=lambda item: -item[1])[:count]

    def _ids(self) -> list[Any]:
        return sorted(self._seen, key=lambda key: (str(type(key)), key))

    def evaluate(self, kind: str) -> Any:
        """faster-coco-eval's evaluation of "box" or "mask", after `summarize`; None without images."""
        if not self._seen:
            return None
        library = rle.need("faster_coco_eval")
        images, objects, results = [], [], []
        for number, key in enumerate(self._ids(), start=1):
            entry = self._seen[key]
            height, width = entry["size"]
            images.append({"id": number, "height": height, "width": width})
            for a in entry["objects"]:
                objects.append(
                    {
                        "id": len(objects) + 1,
                        "image_id": number,
                        "category_id": a["label"] + 1,
                        "bbox": a["bbox"],
                        "area": a["area"],
                        "iscrowd": a["iscrowd"],
                        "segmentation": a["segmentation"],
                    }
                )
            for d in entry["detections"]:
                shape = {"bbox": d["bbox"]} if kind == "box" else {"segmentation": d["segmentation"]}
                results.append(
                    {"image_id": number, "category_id": d["label"] + 1, "score": d["score"], **shape}
                )
        labels = {o["category_id"] for o in objects} | {r["category_id"] for r in results}
        count = max(len(self.class_names), *labels, 1)
        categories = [{"id": i + 1, "name": str(i)} for i in range(count)]
        truth = library.COCO({"images": images, "annotations": objects, "categories": categories})
        if results:
            found = truth.loadRes(results)
        else:  # which the library cannot read
            found = library.COCO({"images": images, "annotations": [], "categories": categories})
        stats = library.COCOeval_faster(truth, found, _KINDS[kind], print_function=lambda *_: None)
        stats.evaluate()
        stats.accumulate()
        stats.summarize()
        return stats


def detections(found: Mapping[str, Tensor]) -> list[dict[str, Any]]:
    """Of one image in plain types: label, score, bbox (x, y, width, height), segmentation (run lengths)."""
    boxes = found["boxes"].double().cpu()
    corners = boxes[:, :2].tolist(), (boxes[:, 2:] - boxes[:, :2]).tolist()
    masks = found["masks"].cpu().numpy()
    return [
        {"label": label, "score": score, "bbox": [*corner, *sides], "segmentation": rle.encode(mask)}
        for label, score, corner, sides, mask in zip(
            found["labels"].tolist(), found["scores"].tolist(), *corners, masks, strict=True
        )
    ]


def open_coco(
    root: str,
    split: str,
    *,
    annotations: str | None = None,
    images: str | None = None,
    **options: Any,
) -> CocoSource:
    """COCO's layout: root/annotations/instances_SPLIT.json and root/SPLIT, where neither is named.

    Raises DataError where they are not there.
    """
    base = Path(root)
    file = base / "annotations" / f"instances_{split}.json" if annotations is None else base / annotations
    folder = base / split if images is None else base / images
    if not file.is_file():
        there = sorted(str(p.relative_to(base)) for p in base.glob("**/*.json"))[:8] if base.is_dir() else []
        hint = f"; in {root} are {', '.join(there)}" if there else ""
        raise DataError(f"there is no {file}: expected COCO's instances{hint}")
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}: expected the images of {file}")
    return CocoSource(file, folder, **options)


def labelled(model: LoadedModel, request: Request) -> Labelled:
    """Annotated images for a detector, by the names of its classes.

    Raises DataError where there are none, or where the classes are others.
    """
    source = open_coco(
        request.root,
        request.split or "val2017",
        channels=model.data_config["input_size"][0],
        classes=None if request.by_number else model.class_names,
        limit=request.limit,
    )
    if request.by_number and len(source.class_names or ()) != model.num_classes:
        raise DataError(
            f"the data have {len(source.class_names or ())} classes, the network {model.num_classes}: expected its own"
        )
    names = source.class_names or []

    def transform(size: int | None) -> Resize:
        config = dict(model.data_config)
        if size is not None:
            channels, short, long = config["input_size"]
            config["input_size"] = [channels, size, round(size * long / short)]
        return Resize(config)

    return Labelled(
        source=source, transform=transform, metrics=lambda: CocoMetrics(names), collate=collate, warning=""
    )
