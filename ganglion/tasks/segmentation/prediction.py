"""The class of every pixel of images, and a picture of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

from ...config import check_range
from ...data import Ragged
from ...data.decode import Raw
from ...data.masks import IGNORED
from ...errors import shown
from ...heads import Segmentor, create_segmentor, slide_bands
from ..detection import rle
from ..loaded_model import LoadedModel
from ..pixels import colour, to_pixels
from ..prediction import NOT_FINITE, ImageLike, entries
from .metrics import predicted_labels, runs
from .transforms import Resize

__all__ = ["HEADER", "beside", "build", "draw", "entry_of", "label_map", "lines", "predictions", "results"]

#: Of what `lines` returns.
HEADER = "pixels   class"

#: Fraction of a class's colour over the image.
_COVER = 0.55


def build(description: Mapping[str, Any]) -> nn.Module:
    """The segmentor of a checkpoint, by what `Segmentation.description` said of it; its weights are random."""
    return create_segmentor(
        description["model"],
        description["backbone"],
        num_classes=description["num_classes"],
        backbone_args=description["backbone_args"],
        **description["config"],
    )


class _Windows(nn.Module):
    """A segmentor over images as they are, in square windows that overlap by a third: a label map of each image."""

    def __init__(self, segmentor: Segmentor, side: int):
        super().__init__()
        self._segmentor, self._side = segmentor, side

    def forward(self, images: Ragged) -> list[Tensor]:
        return [self._labels(image[None]) for image in images]

    def _labels(self, image: Tensor) -> Tensor:
        side, bands = self._side, []
        step = max(1, side * 2 // 3)
        for logits in slide_bands(self._segmentor, image, crop=(side, side), stride=(step, step)):
            if not torch.isfinite(logits).all():
                return image.new_full((1, 1), torch.nan)
            bands.append(logits[0].argmax(0))
        return torch.cat(bands)


def predictions(
    model: LoadedModel,
    images: ImageLike | Iterable[ImageLike],
    *,
    window: int | None = None,
    batch_size: int = 1,
) -> Iterator[dict[str, Any]]:
    """The classes of each image, the largest first, and its label map as run lengths, see `label_map`.

    window: side of windows in pixels, in which an image is read without being resized: of large images with much that
    is small. null: the whole image, resized as in training.
    """
    check_range("window", window, 32)
    names = model.readable_names()
    resize, sizes = Resize(model.data_config), list[tuple[int, int]]()
    if window is not None:
        network: Any = model.network
        model = replace(model, network=_Windows(network, window).eval())

    def transform(image: Raw) -> Tensor:
        pixels = to_pixels(image)
        sizes.append((pixels.shape[1], pixels.shape[2]))
        return resize(pixels, None)[0] if window is None else resize.normalise(pixels)

    def entry(output: Tensor, file: str | None) -> dict[str, Any] | str:
        size = sizes.pop(0)
        if not output.isfinite().all():
            return NOT_FINITE
        return entry_of(output if window is not None else predicted_labels(output, size), names)

    return entries(model, images, transform, entry, batch_size=batch_size, collate=_batch)


def _batch(images: list[Tensor]) -> Any:
    return Ragged(images)


def entry_of(labels: Tensor, names: Sequence[str]) -> dict[str, Any]:
    """What `predictions` says of a label map (H, W), but for its file. `IGNORED` is no class."""
    counts = torch.bincount(labels.flatten().long().cpu(), minlength=IGNORED + 1).tolist()
    order = sorted((i for i in range(len(names)) if counts[i]), key=lambda i: -counts[i])
    return {
        "size": list(labels.shape),
        "predictions": [
            {"index": i, "name": names[i], "fraction": counts[i] / labels.numel()} for i in order
        ],
        "labels": runs(labels).tolist(),
    }


def results(entry: Mapping[str, Any]) -> list[dict[str, Any]]:
    """COCO's format of results of an entry of `predictions`: a mask for each class. Needs the extra `detection`."""
    labels = label_map(entry)
    return [
        {
            "image_id": entry["file"],
            "category_id": p["index"],
            "segmentation": rle.as_text(rle.encode(labels == p["index"])),
        }
        for p in entry["predictions"]
    ]


def label_map(entry: Mapping[str, Any]) -> np.ndarray:
    """The label of every pixel, (H, W) uint8 or uint16. entry: a dictionary of `predict`, whose `labels` are pairs of a
    label and how many pixels have it, row after row."""
    values, counts = zip(*entry["labels"], strict=True)
    kind = np.uint8 if max(values) < 256 else np.uint16
    return np.repeat(np.array(values, kind), counts).reshape(entry["size"])


def draw(image: Image.Image, entry: Mapping[str, Any]) -> Image.Image:
    """The image under the colours of its classes, which are the same in every image, with a legend below."""
    labels = label_map(entry)
    found = entry["predictions"]
    palette = np.array([colour(i) for i in range(int(labels.max()) + 1)], np.float32)
    pixels = np.asarray(image.convert("RGB"), dtype=np.float32)
    mixed = (1 - _COVER) * pixels + _COVER * palette[labels]
    mixed[labels == IGNORED] = pixels[labels == IGNORED]
    edge = np.zeros(labels.shape, bool)
    edge[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    edge[1:] |= labels[1:] != labels[:-1]
    edge &= labels != IGNORED
    mixed[edge] = palette[labels][edge]
    picture = Image.fromarray(mixed.round().astype(np.uint8))
    font: Any = ImageFont.load_default(max(11, min(picture.size) // 28))
    return _with_legend(
        picture, [(p["index"], f"{shown(p['name'])} {100 * p['fraction']:.0f} %") for p in found], font
    )


def beside(*pictures: Image.Image) -> Image.Image:
    """Pictures in a row."""
    whole = Image.new("RGB", (sum(p.width for p in pictures), max(p.height for p in pictures)), "#ffffff")
    left = 0
    for picture in pictures:
        whole.paste(picture, (left, 0))
        left += picture.width
    return whole


def _with_legend(picture: Image.Image, entries: list[tuple[int, str]], font: Any) -> Image.Image:
    line = round(1.5 * font.size)
    pen = ImageDraw.Draw(picture)
    rows: list[list[tuple[int, str, float]]] = [[]]
    used = 0.0
    for index, text in entries:
        width = pen.textlength(text, font) + 2 * line
        if rows[-1] and used + width > picture.width:
            rows.append([])
            used = 0.0
        rows[-1].append((index, text, used))
        used += width
    whole = Image.new("RGB", (picture.width, picture.height + line * len(rows) + line // 2), "#ffffff")
    whole.paste(picture)
    pen = ImageDraw.Draw(whole)
    for row, cells in enumerate(rows):
        top = picture.height + line // 4 + row * line
        for index, text, left in cells:
            pen.rectangle((left + 4, top + 3, left + line - 2, top + line - 3), fill=colour(index))
            pen.text((left + line + 2, top + line / 2), text, fill="#111111", font=font, anchor="lm")
    return whole


def lines(entry: Mapping[str, Any]) -> list[str]:
    """An entry of `predictions` as lines of a table."""
    return [f"{100 * p['fraction']:5.1f} %  {shown(p['name'])}" for p in entry["predictions"]]
