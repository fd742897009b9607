"""A picture with what was predicted beneath it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

_PAPER, _INK, _BAR = "#ffffff", "#222222", "#c9d6e8"
_NARROWEST = 320


def annotate(picture: Image, predictions: Sequence[tuple[str, float]]) -> Image:
    """The picture, and under it a line for every (name, probability), with a bar as long as it is probable.

    Returns an RGB image, of at least 320 pixels in width so that the lines can be read.
    """
    from PIL import Image, ImageDraw, ImageFont

    width = max(picture.width, _NARROWEST)
    size = max(14, width // 36)
    try:
        font = ImageFont.truetype("DejaVuSans.ttf", size)
    except OSError:  # Pillow's own font knows fewer letters
        font = ImageFont.load_default(size)
    line, margin = round(1.5 * size), size // 2
    canvas = Image.new("RGB", (width, picture.height + line * len(predictions) + 2 * margin), _PAPER)
    canvas.paste(picture.convert("RGB"), ((width - picture.width) // 2, 0))
    draw = ImageDraw.Draw(canvas)
    for i, (name, probability) in enumerate(predictions):
        top = picture.height + margin + i * line
        end = margin + round((width - 2 * margin) * probability)
        draw.rectangle((margin, top, max(end, margin + 1), top + line - 3), fill=_BAR)
        text = f"{100 * probability:.1f} %  {name}"
        while draw.textlength(text, font) > width - 3 * margin and len(text) > 12:
            text = text[:-4].rstrip() + "..."
        draw.text((2 * margin, top + (line - 3) // 2), text, fill=_INK, font=font, anchor="lm")
    return canvas


def free_names(files: Sequence[Path], folder: Path) -> list[Path]:
    """Where to save each file's copy: its name with `.predicted.jpg`, numbered where two would be one or an input."""
    taken = {file.resolve() for file in files}
    names = []
    for file in files:
        target, number = folder / f"{file.stem}.predicted.jpg", 2
        while target.resolve() in taken:
            target, number = folder / f"{file.stem}.{number}.predicted.jpg", number + 1
        taken.add(target.resolve())
        names.append(target)
    return names
