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
from ...data.coco import UnknownClass
from ...training.metrics import Monitor
from ..evaluation import Labelled, Request
from ..loaded_model import LoadedModel
from . import rle
from .augmented import at_side, test_time
from .transforms import Resize, collate

MONITOR: Monitor = ("box_ap", "max")

#: Indices of an object and of the detection of it; -1 for none.
Match = tuple[int, int]

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
        self.class_names: list[str] = list(class_names)
        self._seen: dict[Any, dict[str, Any]] = {}
        self._evaluated: dict[str, Any] = {}  # of what was seen so far
        self.not_finite: int = 0

    def update(self, output: list[dict[str, Tensor]], batch: Batch) -> None:
        """Add a batch. output: of `MaskRCNN`, in the frame of the files. Targets without image_id do not count."""
        targets: Any = batch.targets
        self._evaluated = {}
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
        return [row[0] for row in self.classes(kind)]

    def classes(self, kind: str = "box") -> list[tuple[float, ...]]:
        """AP, AP50 and AR100 of each class in percent, -1 for one without objects; none without images."""
        stats = self.evaluate(kind)
        if stats is None:
            return []
        precision_TRKAM, recall_TKAM = stats.eval["precision"], stats.eval["recall"]
        return [
            tuple(
                100 * float(v[v > -1].mean()) if (v > -1).any() else -1.0
                for v in (
                    precision_TRKAM[:, :, k, 0, -1],
                    precision_TRKAM[0, :, k, 0, -1],
                    recall_TKAM[:, k, 0, -1],
                )
            )
            for k in range(precision_TRKAM.shape[2])
        ]

    def curves(self, kind: str = "box") -> np.ndarray:
        """Precision over recall: (10, 101) for IoU 0.50 to 0.95, recall 0 to 1; means over the classes with objects."""
        stats = self.evaluate(kind)
        if stats is None:
            return np.full((10, 101), np.nan)
        precision_TRK = stats.eval["precision"][:, :, :, 0, -1]
        there = (precision_TRK > -1).all(axis=(0, 1))
        return precision_TRK[:, :, there].mean(axis=2) if there.any() else np.full((10, 101), np.nan)

    def matches(self, threshold: float = 0.3) -> dict[Any, list[Match]]:
        """By image, which object each detection with a score of at least `threshold` is of, see `match`."""
        return {
            key: match(self._seen[key]["objects"], self._seen[key]["detections"], threshold)
            for key in self._ids()
        }

    def missed(self, count: int = 20, threshold: float = 0.3) -> list[tuple[Any, list[int]]]:
        """The images of which most objects have no detection of their class, and those objects' indices; worst first.

        A detection counts with a score of at least `threshold` and an IoU of 0.5."""
        lost = []
        for key, pairs in self.matches(threshold).items():
            objects, found = self._seen[key]["objects"], self._seen[key]["detections"]
            right = {o for o, d in pairs if o >= 0 and d >= 0 and objects[o]["label"] == found[d]["label"]}
            missing = [i for i, a in enumerate(objects) if not a["iscrowd"] and i not in right]
            if missing:
                lost.append((key, missing))
        return sorted(lost, key=lambda item: -len(item[1]))[:count]

    def of_image(self, key: Any) -> dict[str, Any]:
        """size, objects (COCO's annotations with label) and detections of an image."""
        return self._seen[key]

    @property
    def image_ids(self) -> list[Any]:
        """Of the images seen, in order."""
        return self._ids()

    def _ids(self) -> list[Any]:
        return sorted(self._seen, key=lambda key: (str(type(key)), key))

    def evaluate(self, kind: str) -> Any:
        """faster-coco-eval's evaluation of "box" or "mask", after `summarize`; None without images."""
        if not self._seen:
            return None
        if kind not in self._evaluated:
            self._evaluated[kind] = self._evaluate(kind)
        return self._evaluated[kind]

    def _evaluate(self, kind: str) -> Any:
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


def match(
    objects: Sequence[Mapping[str, Any]], found: Sequence[Mapping[str, Any]], threshold: float
) -> list[Match]:
    """Pairs of an object's and a detection's index, with an IoU of at least 0.5, each in one pair; (i, -1) for an
    object that nothing found, (-1, j) for a detection of nothing.

    The surest detection chooses first, an object of its own class if there is one. Crowds are in no pair, and neither
    are detections of which at least half lies in one.
    """
    order = sorted(
        (j for j, d in enumerate(found) if d["score"] >= threshold), key=lambda j: -found[j]["score"]
    )
    single = [i for i, a in enumerate(objects) if not a["iscrowd"]]
    crowds = [a for a in objects if a["iscrowd"]]
    boxes = _corners([found[j] for j in order])
    iou = box_iou(boxes, _corners([objects[i] for i in single])).numpy()
    within = _covered(boxes, _corners(crowds)).numpy()
    free, pairs = set(range(len(single))), list[Match]()
    for row, j in enumerate(order):
        near = [k for k in free if iou[row, k] >= 0.5]
        if near:
            best = max(
                near, key=lambda k: (objects[single[k]]["label"] == found[j]["label"], iou[row, k], -k)
            )
            free.remove(best)
            pairs.append((single[best], j))
        elif not (within[row] >= 0.5).any():
            pairs.append((-1, j))
    return pairs + [(single[k], -1) for k in sorted(free)]


def _corners(entries: Sequence[Mapping[str, Any]]) -> Tensor:
    boxes = torch.tensor([e["bbox"] for e in entries], dtype=torch.float64).reshape(-1, 4)
    return box_convert(boxes, "xywh", "xyxy")


def _covered(boxes: Tensor, by: Tensor) -> Tensor:
    """The fraction of each box (n, 4) that lies in each of `by` (m, 4): (n, m)."""
    sides = torch.minimum(boxes[:, None, 2:], by[:, 2:]) - torch.maximum(boxes[:, None, :2], by[:, :2])
    area = (boxes[:, 2:] - boxes[:, :2]).prod(-1)
    return sides.clamp(min=0).prod(-1) / area[:, None].clamp(min=1e-9)


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
    split = request.split or "val2017"
    try:
        source = open_coco(
            request.root,
            split,
            channels=model.data_config["input_size"][0],
            classes=None if request.by_number else model.class_names,
            limit=request.limit,
        )
    except UnknownClass as error:
        raise DataError(
            f"the classes are not those of {model.name}: {str(error).removeprefix('data.classes: ')} Expected its "
            f"{model.num_classes}, by their names; --by-number takes as many others in the order of their ids"
        ) from error
    if request.by_number and len(source.class_names or ()) != model.num_classes:
        raise DataError(
            f"the data have {len(source.class_names or ())} classes, the network {model.num_classes}: expected its own"
        )
    names = source.class_names or []

    return Labelled(
        source=source,
        transform=lambda size: Resize(at_side(model.data_config, size)),
        metrics=lambda: CocoMetrics(names),
        collate=collate,
        augmented=test_time(model.network, model.data_config),
        batch_size=1,
    )
