"""The page: one HTML file from a plain dictionary, its styles, its scripts and its data in it."""

from __future__ import annotations

import html
import json
import os
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from ..files import refuse_existing, replacing
from ..tasks.loaded_model import LoadedModel
from ..tasks.prediction import ImageLike
from .record import explore

#: The scripts in their order; they share one scope.
SCRIPTS = (
    "numbers.js",
    "scan.js",
    "colours.js",
    "state.js",
    "pictures.js",
    "reading.js",
    "walking.js",
    "connections.js",
    "fields.js",
    "saving.js",
    "page.js",
)

#: What a page of ours begins with.
MARK = "<!DOCTYPE html>\n<!-- ganglion explore -->\n"


def page_of(data: Mapping[str, Any]) -> str:
    """The page as text. data: what `explore` returned."""
    folder = files("ganglion.explorer")

    def source(name: str) -> str:
        return (folder / name).read_text(encoding="utf-8")

    network, images = data["network"], data["images"]
    title = f"{network['name']} looks at {', '.join(image['name'] for image in images)}"
    parts = {
        "title": html.escape(title),
        "style": source("page.css"),
        # Nothing in it can end the element.
        "data": json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"),
        "script": "\n".join(source(name) for name in SCRIPTS),
    }
    page = source("page.html")
    pieces = []
    for name, value in parts.items():  # in the page's order: what was put in is not looked through
        before, page = page.split(f"{{{{ {name} }}}}", 1)
        pieces += [before, value]
    return MARK + "".join(pieces) + page


def make_page(
    file: str | os.PathLike[str],
    model: LoadedModel,
    images: Sequence[ImageLike],
    *,
    names: Sequence[str] | None = None,
    size: tuple[int, int] | None = None,
    fields: bool = True,
    overwrite: bool = False,
) -> Path:
    """Write the page of a network looking at images to a file, and return its path. A page of ours that is there is
    replaced.

    model, images, names, size, fields: of `explore`. overwrite: whatever is there.

    Raises FileExistsError where something else is there, before anything is computed; errors as of `explore`; OSError.
    """
    path = Path(file)
    if not is_page(path):
        refuse_existing(path, "page", overwrite=overwrite)
    text = page_of(explore(model, images, names=names, size=size, fields=fields))
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")
    return path


def is_page(path: str | os.PathLike[str]) -> bool:
    """Whether a file is a page that `make_page` wrote. Raises OSError where it cannot be read."""
    if not os.path.isfile(path):
        return False
    with open(path, "rb") as file:
        return file.read(len(MARK)) == MARK.encode()
