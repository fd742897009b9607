"""Images with objects in them, as COCO's JSON of instances describes them."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import shown, unknown
from .coco_masks import checked_mask, wrong_counts
from .decode import Raw, UnreadableImage, open_regular, read_image, reason
from .source import IndexedSource
from .types import DataError

#: Images with a shorter side are not trained on, as published.
_SHORTEST = 32

_EXPECTED = "expected COCO's instances: an object with images, annotations and categories"

#: Lists that other formats have, and the name of the format.
_OTHERS = {
    "shapes": "of labelme (one file an image)",
    "_via_img_metadata": "of the VGG annotator (VIA)",
    "features": "GeoJSON",
    "frames": "of BDD or a video annotator",
    "items": "of Datumaro",
}


class UnknownClass(DataError):
    """A class is wanted that the file does not have."""


class CocoSource(IndexedSource):
    """Images of a folder, and the objects that a JSON file says are in them.

    annotations: the file. images: the folder. training: leave out images without objects and those with a side of less
    than 32 pixels. classes: only these, in this order; None for all, in the order of their ids.

    A target is a dictionary: image_id; size (height, width); annotations, each with bbox (x, y, width, height), label
    (from 0 on), iscrowd, area and segmentation. What was left out is counted in `note`.

    Raises DataError for a file of another format, for one whose boxes are corners, and where no image is left.
    """

    def __init__(
        self,
        annotations: Path,
        images: Path,
        *,
        channels: int = 3,
        training: bool = False,
        classes: Sequence[str] | None = None,
        limit: int | None = None,
    ):
        self.channels: int = channels
        self._folder = images
        self.path: Path = annotations
        content = read_coco(annotations)
        self._left_out: Counter[str] = Counter()
        self.category_ids: list[Any]
        self.class_names: list[str] | None
        self.category_ids, self.class_names = _categories(annotations, content["categories"], classes)
        self._known = {category["id"] for category in content["categories"]}
        found = self._images(content["images"])
        self._annotations(content["annotations"], found)
        if training:
            found = {key: image for key, image in found.items() if self._is_trained_on(image)}
        self._items = list(found.values())[:limit]
        if not self._items:
            kind = "annotated image of these classes" if training else "image"
            raise DataError(f"{annotations}: no {kind} is left ({self.note or 'it names none'})")
        if not any((images / item["file"]).is_file() for item in self._items):
            raise DataError(
                f"none of the {len(self._items)} images that {annotations} names is in {images}, such as "
                f"{self._items[0]['file']}: expected their folder, as data.root, data.train_images or "
                "data.val_images"
            )

    @property
    def note(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]  computed here
        return ", ".join(f"{count} {what}" for what, count in self._left_out.items())

    def _images(self, entries: Sequence[Mapping[str, Any]]) -> dict[Any, dict[str, Any]]:
        found: dict[Any, dict[str, Any]] = {}
        for i, entry in enumerate(entries):
            try:
                size = (int(entry["height"]), int(entry["width"]))
                key, file = entry["id"], entry["file_name"]
                if not isinstance(key, (int, str)) or not isinstance(file, str) or min(size) < 1:
                    raise ValueError("id, file_name or size")
            except (KeyError, TypeError, ValueError) as error:
                raise DataError(
                    f"{self.path}: images[{i}] is {shown(str(entry)[:80])}: expected id, file_name, height and width"
                ) from error
            image = {"image_id": key, "file": file, "size": size, "annotations": []}
            parts = Path(image["file"]).parts
            if os.path.isabs(image["file"]) or ".." in parts:
                raise DataError(
                    f"{self.path}: images[{i}] has the file {image['file']!r}: expected a path below {self._folder}"
                )
            if image["image_id"] in found:
                self._left_out["images with an id that another one has"] += 1
            else:
                found[image["image_id"]] = image
        return found

    def _annotations(self, entries: Sequence[Mapping[str, Any]], images: dict[Any, dict[str, Any]]) -> None:
        labels = {category: label for label, category in enumerate(self.category_ids)}
        seen, corners, boxes = set(), 0, 0
        for i, entry in enumerate(entries):
            try:
                x, y, w, h = map(float, entry["bbox"])
                image, category, key = entry["image_id"], entry["category_id"], entry.get("id", f"#{i}")
                area, crowd = float(entry.get("area", w * h)), entry.get("iscrowd", 0)
                if not all(isinstance(v, (int, str)) for v in (image, category, key)) or crowd not in (0, 1):
                    raise ValueError("ids or iscrowd")
            except (KeyError, TypeError, ValueError) as error:
                raise DataError(
                    f"{self.path}: annotations[{i}] is {shown(str(entry)[:80])}: expected image_id, category_id, "
                    "bbox (x, y, width, height), area (a number) and iscrowd (0 or 1)"
                ) from error
            if not (x == x and y == y and abs(w) < 1e9 and abs(h) < 1e9):
                raise DataError(
                    f"{self.path}: annotations[{i}] has the bbox {entry['bbox']}: expected finite numbers"
                )
            if key in seen:
                self._left_out["annotations with an id that another one has"] += 1
            elif image not in images:
                self._left_out["annotations of images that the file does not have"] += 1
            elif category not in labels:
                if category not in self._known:
                    self._left_out["annotations of categories that the file does not have"] += 1
            else:
                height, width = images[image]["size"]
                shape, wrong = checked_mask(entry.get("segmentation"), height, width)
                if wrong:
                    raise DataError(f"{self.path}: annotations[{i}] (id {key}): {wrong}")
                boxes += 1
                corners += _is_corners(entry, width, height)
                if w < 1 or h < 1:
                    self._left_out["boxes of less than a pixel"] += 1
                elif min(x + w, width) - max(x, 0) <= 0 or min(y + h, height) - max(y, 0) <= 0:
                    self._left_out["boxes outside of their image"] += 1
                else:
                    if shape is None:
                        self._left_out["objects without a mask, whose box is taken for it"] += 1
                    images[image]["annotations"].append(
                        {
                            "bbox": [x, y, w, h],
                            "label": labels[category],
                            "iscrowd": int(crowd),
                            "area": area,
                            "segmentation": _as_polygon(x, y, w, h) if shape is None else shape,
                        }
                    )
            seen.add(key)
        if boxes and corners > boxes / 2:
            raise DataError(
                f"{self.path}: {corners} of {boxes} boxes look like x0, y0, x1, y1: expected x, y, width, height"
            )

    def _is_trained_on(self, image: dict[str, Any]) -> bool:
        if not any(not a["iscrowd"] for a in image["annotations"]):
            self._left_out["images without objects"] += 1
            return False
        if min(image["size"]) < _SHORTEST:
            self._left_out[f"images with a side below {_SHORTEST} pixels"] += 1
            return False
        return True

    def __len__(self) -> int:
        return len(self._items)

    def image(self, index: int) -> tuple[Raw, dict[str, Any]]:
        item = self._items[index]
        for number, a in enumerate(item["annotations"]):
            if wrong := wrong_counts(a["segmentation"], *item["size"]):
                raise UnreadableImage(f"of its objects in {self.path.name} number {number}: {wrong}")
        try:
            file = open_regular(self._folder / item["file"])
        except OSError as error:
            raise UnreadableImage(reason(error)) from error
        image = read_image(file, self.channels)
        found = tuple(image.shape[-2:]) if isinstance(image, Tensor) else (image.height, image.width)
        if tuple(found) != item["size"]:
            raise UnreadableImage(
                f"it is {found[1]} x {found[0]} pixels, and {item['size'][1]} x {item['size'][0]} in {self.path.name}"
            )
        return image, {key: item[key] for key in ("image_id", "size", "annotations")}

    def name(self, index: int) -> str:
        return shown(self._items[index]["file"])

    def path_of(self, item: Mapping[str, Any]) -> Path:
        """The file of one of `targets`."""
        return self._folder / item["file"]

    def targets(self) -> list[dict[str, Any]]:
        """What is known of every image, without reading images."""
        return self._items


def read_coco(path: Path) -> dict[str, Any]:
    """The content of a JSON file of instances.

    Raises DataError, saying what the file looks like, for another one.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "no text"
        raise DataError(f"cannot read {path}: {why}; {_EXPECTED}") from error
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is {_other_text(text, error)}: {_EXPECTED}") from error
    if (other := _other_json(content)) is not None:
        raise DataError(f"{path} looks like {other}: {_EXPECTED}")
    return content


def _other_text(text: str, error: Exception) -> str:
    start = text.lstrip()[:2000]
    if not start:
        return "empty"
    if start.startswith("<"):
        return "XML, as of Pascal VOC"
    first = start.partition("\n")[0]
    if first.startswith("{") and first.rstrip().endswith("}"):
        return "a list of JSON objects, one a line"
    if first.count(",") >= 3 and not first.startswith(("{", "[")):
        return "a table of values between commas"
    words = first.split()
    try:
        if len(words) >= 5 and all(isinstance(float(word), float) for word in words):
            return "a list of numbers, as of YOLO"
    except ValueError:
        pass
    return f"no JSON ({error})"


def _other_json(content: Any) -> str | None:
    if isinstance(content, list):
        first = content[0] if content and isinstance(content[0], Mapping) else {}
        if "score" in first:
            return "COCO's results (predictions, no annotations)"
        return "a list of CreateML" if {"image", "annotations"} <= first.keys() else "a list"
    if not isinstance(content, Mapping):
        return f"a {type(content).__name__}"
    missing = [
        key for key in ("images", "annotations", "categories") if not isinstance(content.get(key), list)
    ]
    first = next(iter(content.get("annotations") or ()), {}) if "annotations" not in missing else {}
    if isinstance(first, Mapping):
        if "segments_info" in first:
            return "COCO's panoptic annotations"
        if "caption" in first:
            return "COCO's captions"
    if not missing:
        image = next(iter(content["images"]), {})
        if isinstance(image, Mapping) and "coco_url" in image and "file_name" not in image:
            return "LVIS, whose images have no file_name"
        return None
    if content and all(isinstance(v, Mapping) and "regions" in v for v in content.values()):
        return "a file of the VGG annotator (VIA)"
    for key, what in _OTHERS.items():
        if key in content:
            return f"a file {what}" if what.startswith("of") else what
    return f"an object without {' and '.join(missing)}"


def _categories(
    path: Path, entries: Sequence[Mapping[str, Any]], classes: Sequence[str] | None
) -> tuple[list[Any], list[str]]:
    try:
        names = {entry["id"]: str(entry["name"]) for entry in entries}
        ids = sorted(names)
    except (KeyError, TypeError) as error:
        raise DataError(f"{path}: a category lacks its id or name, or ids are of two types") from error
    if len(names) != len(entries):
        raise DataError(f"{path}: two categories have one id: expected an id for each")
    if not names:
        raise DataError(f"{path}: categories is empty: expected an id and a name for each class")
    for name, count in Counter(names.values()).items():
        if count > 1:
            same = ", ".join(str(i) for i in ids if names[i] == name)
            raise DataError(
                f"{path}: the categories {same} are all called {name!r}: expected a name for each"
            )
    if classes is None:
        return ids, [names[i] for i in ids]
    by_name = {name: i for i, name in names.items()}
    for name in classes:
        if name not in by_name:
            raise UnknownClass(
                f"data.classes: {unknown('class', name, by_name)} These are the classes of {path}."
            )
    return [by_name[name] for name in classes], list(classes)


def _is_corners(entry: Mapping[str, Any], width: int, height: int) -> bool:
    """Whether a box can only be x0, y0, x1, y1: as x, y, width, height it leaves the image, or its polygons."""
    x, y, w, h = entry["bbox"]
    if w <= x or h <= y:  # no corners
        return False
    polygons = entry.get("segmentation")
    if isinstance(polygons, list) and polygons and isinstance(polygons[0], list) and polygons[0]:
        right, bottom = max(max(p[0::2]) for p in polygons), max(max(p[1::2]) for p in polygons)
        return x > 2 and y > 2 and abs(w - right) < 1.5 and abs(h - bottom) < 1.5
    return x + w > width + 2 or y + h > height + 2


def _as_polygon(x: float, y: float, w: float, h: float) -> list[list[float]]:
    return [[x, y, x + w, y, x + w, y + h, x, y + h]]
