"""One picture of what a detector or segmentor finds in some images.

    python experiments/dense/pictures.py MODEL OUTPUT.jpg IMAGE ...

MODEL is a folder that `ganglion fit` has left. Images stand side by side, four to a row, each 300 pixels high.
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image

import ganglion

HEIGHT, COLUMNS, GAP = 300, 4, 6


def main(model: str, output: str, *images: str) -> None:
    loaded = ganglion.load_model(model)
    drawn = []
    options = {"threshold": 0.5} if loaded.task.name == "detection" else {}
    for file, entry in zip(images, ganglion.predict(loaded, images, **options), strict=True):
        picture = loaded.task.prediction.draw(Image.open(file), entry)
        drawn.append(picture.resize((round(picture.width * HEIGHT / picture.height), HEIGHT)))
    rows = [drawn[i : i + COLUMNS] for i in range(0, len(drawn), COLUMNS)]
    width = max(sum(p.width + GAP for p in row) for row in rows) - GAP
    sheet = Image.new("RGB", (width, len(rows) * (HEIGHT + GAP) - GAP), "white")
    for k, row in enumerate(rows):
        x = 0
        for picture in row:
            sheet.paste(picture, (x, k * (HEIGHT + GAP)))
            x += picture.width + GAP
    sheet.save(Path(output), quality=82)


main(*sys.argv[1:])
