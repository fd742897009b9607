"""The file that names the classes of masks, and their colours where masks are images of colours."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import shown
from .types import DataError

_NUMBER = r"[-+]?\d+(?:\.\d+)?"
_COLOUR = rf"(?P<r>{_NUMBER})[\s,]+(?P<g>{_NUMBER})[\s,]+(?P<b>{_NUMBER})"
#: `name r g b`, or `r g b name` as CamVid's own file has it.
_ROWS = (re.compile(rf"(?P<name>.*[^\s,])[\s,]+{_COLOUR}"), re.compile(rf"{_COLOUR}[\s,]+(?P<name>\S.*)"))
_EXPECTED = "expected a class a line, as `name`, `0 name` or `name r g b`"


class _Entry(NamedTuple):
    position: str  # its line or number in the file
    name: str
    colour: list[Any] | None


def read_mask_classes(file: Path) -> tuple[list[str], list[list[int]] | None]:
    """Names of classes, in the order of their labels, and their colours where the file has them.

    A text file with a class a line: `name`; with its label before it, from 0 on; with a colour as `name r g b` or
    `r g b name`. Or JSON: a list of names, or of objects with name and perhaps color, by itself or as `classes`.

    Raises DataError, with the line, for another file, for names or colours that are there twice, for colours of which a
    part is missing or not from 0 to 255.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: expected a list of class names: {error}") from error
    entries = _of_json(file, text) if file.suffix.lower() == ".json" else _of_text(text)
    if not entries:
        raise DataError(f"{file} has no class: {_EXPECTED}")
    coloured = [entry for entry in entries if entry.colour is not None]
    if coloured and len(coloured) < len(entries):
        without = next(entry for entry in entries if entry.colour is None)
        raise DataError(
            f"{file}, {without.position}: {shown(without.name)!r} has no colour, and {shown(coloured[0].name)!r} "
            f"({coloured[0].position}) has one: expected one for each class, or for none"
        )
    _check_unique(file, entries, "name", [entry.name for entry in entries])
    if not coloured:
        return [entry.name for entry in entries], None
    colours = [_checked(file, entry) for entry in entries]
    _check_unique(file, entries, "colour", colours)
    return [entry.name for entry in entries], colours


def _of_text(text: str) -> list[_Entry]:
    rows = [(i, line.strip()) for i, line in enumerate(text.splitlines(), start=1) if line.strip()]
    pattern = max(_ROWS, key=lambda p: sum(p.fullmatch(row) is not None for _, row in rows))
    entries = []
    for i, row in rows:
        found = pattern.fullmatch(row)
        if found is None:
            entries.append(_Entry(f"line {i}", row, None))
        else:
            entries.append(_Entry(f"line {i}", found["name"], [_number(found[part]) for part in "rgb"]))
    numbered = [re.fullmatch(r"(\d+)[\s:,.]+(\S.*)", entry.name) for entry in entries]
    if [found and int(found[1]) for found in numbered] == list(range(len(entries))):
        entries = [e._replace(name=found[2]) for e, found in zip(entries, numbered, strict=True) if found]
    return entries


def _number(text: str) -> int | float:
    return int(text) if re.fullmatch(r"[-+]?\d+", text) else float(text)


def _of_json(file: Path, text: str) -> list[_Entry]:
    expected = f"{file}: expected a JSON list of names, or of objects with name and color"
    try:
        found = json.loads(text)
    except ValueError as error:
        raise DataError(f"{expected}: {error}") from error
    found = found.get("classes") if isinstance(found, dict) else found
    if not isinstance(found, list):
        raise DataError(f"{expected}, by itself or as classes")
    entries = []
    for i, entry in enumerate(found):
        name = entry.get("name") if isinstance(entry, dict) else entry
        colour = entry.get("color") if isinstance(entry, dict) else None
        if not isinstance(name, str) or not name or not isinstance(colour, list | None):
            raise DataError(f"{expected}; entry {i} is {shown(json.dumps(entry))}")
        entries.append(_Entry(f"entry {i}", name, colour))
    return entries


def _checked(file: Path, entry: _Entry) -> list[int]:
    colour = entry.colour or []
    if len(colour) != 3 or any(type(part) is not int or not 0 <= part <= 255 for part in colour):
        raise DataError(
            f"{file}, {entry.position}: the colour of {shown(entry.name)!r} is "
            f"{' '.join(map(str, colour)) or 'empty'}: expected three whole numbers from 0 to 255"
        )
    return colour


def _check_unique(file: Path, entries: list[_Entry], what: str, values: Sequence[Any]) -> None:
    for i, value in enumerate(values):
        if (first := values.index(value)) != i:
            raise DataError(
                f"{file}, {entries[i].position}: the {what} of {shown(entries[i].name)!r} is also that of "
                f"{shown(entries[first].name)!r} ({entries[first].position}): expected another"
            )
