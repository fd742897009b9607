"""The class of every pixel of images, and a picture of them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

from ...data import Ragged
from ...data.decode import Raw
from ...errors import shown
from ...heads import create_segmentor
from ...heads.segmentor import resize_to
from ..loaded_model import LoadedModel
from ..pixels import colour, to_pixels
from ..prediction import ImageLike, outputs
from .transforms import Resize

__all__ = ["HEADER", "build", "draw", "label_map", "lines", "predictions"]

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


def predictions(
    model: LoadedModel, images: ImageLike | Iterable[ImageLike], *, batch_size: int = 1
) -> Iterator[dict[str, Any]]:
    """The classes of each image, the largest first, and its label map as run lengths, see `label_map`."""
    names = model.readable_names()
    resize, sizes = Resize(model.data_config), list[tuple[int, int]]()

    def transform(image: Raw) -> Tensor:
        pixels = to_pixels(image)
        sizes.append((pixels.shape[1], pixels.shape[2]))
        return resize(pixels, None)[0]

    for file, output in outputs(model, images, transform, batch_size=batch_size, collate=_batch):
        if isinstance(output, str):
            yield {"file": file, "error": output}
            continue
        size = sizes.pop(0)
        if not torch.isfinite(output).all():
            yield {"file": file, "error": "the network's output is not finite (NaN or infinite)"}
            continue
        labels = resize_to(output[None].float(), size)[0].argmax(0).cpu()
        counts = torch.bincount(labels.flatten(), minlength=len(names)).tolist()
        order = sorted((i for i, count in enumerate(counts) if count), key=lambda i: -counts[i])
        yield {
            "file": file,
            "size": list(size),
            "predictions": [
                {"index": i, "name": names[i], "fraction": counts[i] / labels.numel()} for i in order
            ],
            "labels": [
                [value, sum(1 for _ in run)] for value, run in itertools.groupby(labels.flatten().tolist())
            ],
        }


def _batch(images: list[Tensor]) -> Any:
    return Ragged(images)


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
    edge = np.zeros(labels.shape, bool)
    edge[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    edge[1:] |= labels[1:] != labels[:-1]
    mixed[edge] = palette[labels][edge]
    picture = Image.fromarray(mixed.round().astype(np.uint8))
    font: Any = ImageFont.load_default(max(11, min(picture.size) // 28))
    return _with_legend(
        picture, [(p["index"], f"{shown(p['name'])} {100 * p['fraction']:.0f} %") for p in found], font
    )


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
