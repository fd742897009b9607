"""The objects in images, and a picture of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ...config import check_range
from ...data import Ragged
from ...data.decode import Raw
from ...errors import shown
from ...heads import create_detector
from ..loaded_model import LoadedModel
from ..prediction import NOT_FINITE, ImageLike, entries
from . import rle
from .metrics import detections
from .overlay import draw
from .transforms import Resize, to_pixels

__all__ = ["HEADER", "build", "draw", "lines", "predictions", "results"]

#: Of what `lines` returns.
HEADER = "score  box (x, y, width, height)    class"


def build(description: Mapping[str, Any]) -> nn.Module:
    """The detector of a checkpoint, by what `Detection.description` said of it; its weights are random."""
    return create_detector(
        description["model"],
        description["backbone"],
        num_classes=description["num_classes"],
        backbone_args=description["backbone_args"],
        **description["config"],
    )


class _Batches:
    """Resizes images and remembers their sizes, in which the objects are wanted."""

    def __init__(self, resize: Resize):
        self._resize, self._sizes = resize, list[tuple[int, int]]()

    def __call__(self, image: Raw) -> Tensor:
        pixels = to_pixels(image)
        self._sizes.append((pixels.shape[1], pixels.shape[2]))
        return self._resize(pixels, None)[0]

    def batch(self, images: list[Tensor]) -> Any:
        sizes, self._sizes = self._sizes, []
        return Ragged(images, sizes)


def predictions(
    model: LoadedModel,
    images: ImageLike | Iterable[ImageLike],
    *,
    threshold: float = 0.3,
    batch_size: int = 16,
) -> Iterator[dict[str, Any]]:
    """The objects of each image with a score of at least `threshold`, best first, in COCO's format of results, see
    `ganglion.predict`."""
    check_range("threshold", threshold, 0, 1)
    names = model.readable_names()
    ids = model.data_config.get("category_ids") or list(range(len(names)))
    batches = _Batches(Resize(model.data_config))

    def entry(output: dict[str, Any], file: str | None) -> dict[str, Any] | str:
        if not all(torch.isfinite(output[name]).all() for name in ("boxes", "scores")):
            return NOT_FINITE
        return {
            "predictions": [
                {
                    "image_id": file,
                    "category_id": ids[d["label"]],
                    "bbox": [round(v, 2) for v in d["bbox"]],
                    "score": d["score"],
                    "segmentation": rle.as_text(d["segmentation"]),
                    "index": d["label"],
                    "name": names[d["label"]],
                }
                for d in detections(output)
                if d["score"] >= threshold
            ],
        }

    return entries(model, images, batches, entry, batch_size=batch_size, collate=batches.batch)


def results(entry: Mapping[str, Any]) -> list[dict[str, Any]]:
    """COCO's format of results of an entry of `predictions`."""
    keys = ("image_id", "category_id", "bbox", "score", "segmentation")
    return [
        {key: entry["file"] if key == "image_id" else found[key] for key in keys}
        for found in entry["predictions"]
    ]


def lines(entry: Mapping[str, Any]) -> list[str]:
    """An entry of `predictions` as lines of a table."""
    found = [
        f"{p['score']:5.3f}  {' '.join(f'{v:6.1f}' for v in p['bbox'])}    {shown(p['name'])}"
        for p in entry["predictions"]
    ]
    return found or ["nothing found"]
