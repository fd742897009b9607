"""The most probable classes of images, and a picture of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import timm
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn

from ...data import eval_transform
from ...errors import shown
from ..loaded_model import LoadedModel
from ..prediction import NOT_FINITE, ImageLike, entries

_PAPER, _INK, _BAR = "#ffffff", "#222222", "#c9d6e8"
_NARROWEST = 320

#: Of what `lines` returns.
HEADER = "rank  probability  class"


def build(description: Mapping[str, Any]) -> nn.Module:
    """The network of a checkpoint, by what `Classification.description` said of it; its weights are random."""
    return timm.create_model(
        description["model"], **{"num_classes": description["num_classes"], **description["model_args"]}
    )


def predictions(
    model: LoadedModel, images: ImageLike | Iterable[ImageLike], *, top_k: int = 5, batch_size: int = 16
) -> Iterator[dict[str, Any]]:
    """The `top_k` most probable classes of each image, see `ganglion.predict`."""
    if top_k < 1:
        raise ValueError(f"top_k is {top_k}: expected at least 1")
    names = model.readable_names()

    def entry(output: Tensor, file: str | None) -> dict[str, Any] | str:
        probability_C = output.float().softmax(dim=0)
        if not probability_C.isfinite().all():
            return NOT_FINITE
        top = probability_C.topk(min(top_k, len(names)))
        best = enumerate(zip(top.indices.tolist(), top.values.tolist(), strict=True), start=1)
        return {
            "predictions": [
                _prediction(model, names, rank, index, probability) for rank, (index, probability) in best
            ]
        }

    return entries(model, images, eval_transform(model.data_config), entry, batch_size=batch_size)


def lines(entry: Mapping[str, Any]) -> list[str]:
    """An entry of `predictions` as lines of a table."""
    return [
        f"{p['rank']:>4}  {100 * p['probability']:>9.2f} %  {shown(p['name'])}" for p in entry["predictions"]
    ]


def draw(image: Image.Image, entry: Mapping[str, Any]) -> Image.Image:
    """The image, and under it a line for each of its predictions, with a bar as long as it is probable.

    entry: a dictionary of `predict`. Returns an RGB image, of at least 320 pixels in width so that the lines can be
    read.
    """
    found = [(shown(p["name"]), p["probability"]) for p in entry["predictions"]]
    width = max(image.width, _NARROWEST)
    size = max(14, width // 36)
    try:
        font = ImageFont.truetype("DejaVuSans.ttf", size)
    except OSError:  # Pillow's own font knows fewer letters
        font = ImageFont.load_default(size)
    line, margin = round(1.5 * size), size // 2
    canvas = Image.new("RGB", (width, image.height + line * len(found) + 2 * margin), _PAPER)
    canvas.paste(image.convert("RGB"), ((width - image.width) // 2, 0))
    pen = ImageDraw.Draw(canvas)
    for i, (name, probability) in enumerate(found):
        top = image.height + margin + i * line
        end = margin + round((width - 2 * margin) * probability)
        pen.rectangle((margin, top, max(end, margin + 1), top + line - 3), fill=_BAR)
        text = f"{100 * probability:.1f} %  {name}"
        while pen.textlength(text, font) > width - 3 * margin and len(text) > 12:
            text = text[:-4].rstrip() + "..."
        pen.text((2 * margin, top + (line - 3) // 2), text, fill=_INK, font=font, anchor="lm")
    return canvas


def _prediction(
    model: LoadedModel, names: list[str], rank: int, index: int, probability: float
) -> dict[str, Any]:
    label = None if model.class_names is None else model.class_names[index]
    return {"rank": rank, "index": index, "label": label, "name": names[index], "probability": probability}
