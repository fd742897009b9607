"""A picture of what was found: masks with outlines, and labels that do not lie on each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from ...errors import shown
from ..pixels import colour
from . import rle

#: Fraction of a mask's colour over the image.
_COVER = 0.42

Box = tuple[float, float, float, float]


def draw(image: Image.Image, entry: Mapping[str, Any]) -> Image.Image:
    """The image with masks, boxes and labels, RGB, of the same size. entry: a dictionary of `predict`."""
    picture = image.convert("RGB")
    found = entry["predictions"]
    line, font = _line(picture), _font(picture)
    pixels = np.asarray(picture, dtype=np.float32).copy()
    outlines = []
    for p in reversed(found):  # the surest ones on top
        mask = rle.decode(p["segmentation"]).astype(bool)
        pixels[mask] = (1 - _COVER) * pixels[mask] + _COVER * np.array(colour(p["index"]), np.float32)
        solid = Image.fromarray(mask.astype(np.uint8) * 255)
        inner = np.asarray(solid.filter(ImageFilter.MinFilter(2 * line + 1))) > 0
        outlines.append((mask & ~inner, colour(p["index"])))
    for edge, shade in outlines:
        pixels[edge] = shade
    picture = Image.fromarray(pixels.round().astype(np.uint8))
    pen = ImageDraw.Draw(picture)
    for p in reversed(found):
        x, y, w, h = p["bbox"]
        pen.rectangle((x, y, x + w, y + h), outline=colour(p["index"]), width=line)
    taken: list[Box] = []
    for p in found:
        text = f"{shown(p['name'])} {p['score']:.2f}"
        width, height = pen.textlength(text, font) + 6, 1.35 * font.size
        box = free_box(p["bbox"], (width, height), picture.size, taken)
        if box is None:  # no room: the box alone
            continue
        taken.append(box)
        shade = colour(p["index"])
        pen.rectangle(box, fill=shade)
        light = 0.299 * shade[0] + 0.587 * shade[1] + 0.114 * shade[2] > 140
        ink = "#111111" if light else "#ffffff"
        pen.text((box[0] + 3, (box[1] + box[3]) / 2), text, fill=ink, font=font, anchor="lm")
    return picture


def free_box(
    bbox: list[float], label: tuple[float, float], picture: tuple[int, int], taken: list[Box]
) -> Box | None:
    """Where a label (width, height) goes: above its box, within it or below, the first box that is free."""
    x, y, w, h = bbox
    width, height = label
    right = max(0.0, picture[0] - width - 1)
    columns = [min(max(0.0, left), right) for left in (x, x + w - width, x + (w - width) / 2)]
    rows = [y - height, y + 1, y + h - height, y + h]
    rows += [y + k * height + 1 for k in range(1, int(h // height))]
    for top in rows:
        if top < 0 or top + height > picture[1]:
            continue
        for left in columns:
            box = (left, top, left + width, top + height)
            if not any(_overlap(box, other) for other in taken):
                return box
    return None


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def outline_missed(picture: Image.Image, missed: Sequence[tuple[Sequence[float], str]]) -> Image.Image:
    """The picture with a dashed box, white on black, and "missed: NAME" for each (x, y, width, height) and name."""
    picture = picture.copy()
    pen = ImageDraw.Draw(picture)
    line, font = _line(picture), _font(picture)
    taken: list[Box] = []
    for (x, y, w, h), name in missed:
        dash = max(4 * line, 6)
        corners = ((x, y), (x + w, y), (x + w, y + h), (x, y + h))
        for (x0, y0), (x1, y1) in zip(corners, (*corners[1:], corners[0]), strict=True):
            length = max(abs(x1 - x0), abs(y1 - y0), 1.0)
            for start in np.arange(0, length, dash):
                part = [
                    (x0 + (x1 - x0) * t, y0 + (y1 - y0) * t)
                    for t in (start / length, min(start + dash, length) / length)
                ]
                pen.line(part, fill="#ffffff" if round(start / dash) % 2 else "#000000", width=line + 1)
        text = f"missed: {shown(name)}"
        box = free_box([x, y, w, h], (pen.textlength(text, font) + 6, 1.35 * font.size), picture.size, taken)
        if box is not None:
            taken.append(box)
            pen.rectangle(box, fill="#000000")
            pen.text((box[0] + 3, (box[1] + box[3]) / 2), text, fill="#ffffff", font=font, anchor="lm")
    return picture


def _line(picture: Image.Image) -> int:
    return max(1, round(max(picture.size) / 500))


def _font(picture: Image.Image) -> Any:
    size = max(11, round(max(picture.size) / 52))
    try:
        return ImageFont.truetype("DejaVuSans.ttf", size)
    except OSError:  # Pillow's own font knows fewer letters
        return ImageFont.load_default(size)
