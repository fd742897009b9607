"""Lists that users bring along: the names of the classes, and the class of each image."""

from __future__ import annotations

import codecs
import csv
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import shown, unknown
from .decode import open_regular, reason
from .types import DataError

#: A line of ImageNet's lists of classes: the WordNet id, which names the folder, and what it means.
_SYNSET = re.compile(r"(n\d{8})[\s,].*")

#: First cells of the line that names the columns of a table.
_IMAGE_COLUMNS = ("file", "file_name", "filename", "image", "image_id", "imageid", "name", "path")

_FORMS = 'expected a list of names, {"name": 0, ...}, {"0": "name", ...} or {"0": ["name", "meaning"], ...}'


def read_classes(path: Path) -> dict[str, int]:
    """Class name -> number, from a file of one of these forms, in UTF-8 (with or without a byte-order mark) or UTF-16:

    text: a name to a line, in the order of the numbers. Of lines that all begin with a WordNet id it is the name.
    JSON: a list of names; {"name": 0, ...}; {"0": "name", ...}; {"0": ["name", "meaning"], ...}.

    Raises DataError for what is none of them, for a blank line before the last name, for a name that stands twice, and
    for numbers that are not all those from 0 on.
    """
    text = _text(path)
    found = _json(path, text) if path.suffix.lower() == ".json" or text.lstrip()[:1] in ("[", "{") else None
    names = _lines(path, text) if found is None else _ordered(path, found)
    if not names:
        raise DataError(f"{path} names no class")
    if twice := [name for name, times in Counter(names).items() if times > 1]:
        numbers = [i for i, name in enumerate(names) if name == twice[0]]
        raise DataError(
            f"{path} names the class {shown(twice[0])!r} twice, as numbers {numbers[0]} and {numbers[1]}"
        )
    return {shown(name): number for number, name in enumerate(names)}


def read_labels(path: Path, images: Sequence[str], classes: Mapping[str, int] | None = None) -> list[str]:
    """The class name of each image, from a file of one of these forms:

    a line to an image, in the order of their names: the class.
    a table, its columns divided by comma, tab or space: the image (its path, its name, or that without the extension)
        and the class. A first line may name the columns; of Kaggle's ImageId,PredictionString the class is the first
        word.

    A class is its name, or its number in the order of `classes`, counted from 0 or from 1: the file has to hold the
    first or the last number, so that it is known which.

    images: paths of the images, "/" between their parts. classes: class name -> number.

    Raises DataError for images without a label, labels without an image, and unknown classes.
    """
    rows = [row for row in _rows(path, _text(path)) if row]
    if not rows:
        raise DataError(f"{path} holds no label")
    if all(len(row) == 1 for row in rows):
        if len(rows) != len(images):
            raise DataError(
                f"{path} has {len(rows)} lines for {len(images)} images: expected a line for each of them, in the "
                "order of their names"
            )
        return _named(path, [row[0] for row in rows], classes)
    return _named(path, _matched(path, rows, images), classes)


def _text(path: Path) -> str:
    try:
        with open_regular(path) as file:
            content = file.read()
        wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        return content.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeError as error:
        raise DataError(f"cannot read {path}: it is no text in UTF-8 ({error})") from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {reason(error)}") from error


def _lines(path: Path, text: str) -> list[str]:
    lines = [line.strip() for line in text.rstrip().splitlines()]
    if "" in lines:
        raise DataError(f"{path}: line {lines.index('') + 1} is blank, expected the name of a class")
    synsets = [_SYNSET.fullmatch(line) for line in lines]
    return [match[1] for match in synsets if match] if all(synsets) else lines


def _json(path: Path, text: str) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if twice := [key for key, times in Counter(key for key, _ in pairs).items() if times > 1]:
            raise DataError(f"{path} has the key {shown(twice[0])!r} twice")
        return dict(pairs)

    try:
        return json.loads(text, object_pairs_hook=unique)
    except (json.JSONDecodeError, RecursionError) as error:
        raise DataError(f"cannot read {path}: it is no JSON ({error})") from error


def _ordered(path: Path, found: Any) -> list[str]:
    """Names in the order of their numbers, from what JSON holds."""
    if isinstance(found, list):
        pairs: list[tuple[Any, Any]] = list(enumerate(found))
    elif isinstance(found, dict) and all(type(value) is int for value in found.values()):
        pairs = [(number, name) for name, number in found.items()]
    elif isinstance(found, dict) and all(key.isdecimal() for key in found):
        pairs = [(int(key), v[0] if isinstance(v, list) and v else v) for key, v in found.items()]
    else:
        raise DataError(f"{path}: {_FORMS}")
    pairs.sort(key=lambda pair: pair[0])
    for expected, (number, name) in enumerate(pairs):
        if number != expected:
            raise DataError(
                f"{path}: the {len(pairs)} classes are not numbered from 0 to {len(pairs) - 1}: "
                + (f"{number} stands twice" if number < expected else f"{expected} is missing")
            )
        if not isinstance(name, str) or not name:
            raise DataError(f"{path}: class {number} is {name!r}: {_FORMS}")
    return [name for _, name in pairs]


def _rows(path: Path, text: str) -> Iterable[list[str]]:
    lines = text.splitlines()
    first = next((line for line in lines if line.strip()), "")
    divider = next((mark for mark in (",", "\t") if mark in first), None)
    try:
        if divider is None:
            yield from (line.split(maxsplit=1) for line in lines)
        else:
            for row in csv.reader(lines, delimiter=divider, strict=True):
                yield [cell.strip() for cell in row]
    except csv.Error as error:
        raise DataError(f"cannot read {path}: {error}") from error


def _matched(path: Path, rows: list[list[str]], images: Sequence[str]) -> list[str]:
    """The second cells in the order of the images that the first cells name."""
    if bad := next((row for row in rows if len(row) < 2 or not row[1]), None):
        raise DataError(f"{path}: {shown(' '.join(bad))!r} names no class")
    header, kaggle = rows[0], [cell.lower() for cell in rows[0][:2]] == ["imageid", "predictionstring"]
    by_key = _by_key(images)
    if header[0] not in by_key and header[0].lower() in _IMAGE_COLUMNS:
        rows = rows[1:]
    found: dict[int, str] = {}
    for image, label, *_ in rows:
        index = by_key.get(image)
        if index is None:
            raise DataError(f"{path}: {unknown('image', image, by_key)}")
        if index in found:
            raise DataError(f"{path} has two labels for the image {shown(image)!r}")
        found[index] = label.split()[0] if kaggle else label
    if len(found) < len(images):
        missing = [image for index, image in enumerate(images) if index not in found]
        raise DataError(
            f"{path} has no label for {len(missing)} of {len(images)} images, such as {shown(missing[0])}"
        )
    return [found[index] for index in range(len(images))]


def _by_key(images: Sequence[str]) -> dict[str, int]:
    """Paths, names and stems -> index; a name or stem of several images means none of them."""
    keys: dict[str, int | None] = {}
    for index, image in enumerate(images):
        path = PurePosixPath(image)
        for key in {path.name, path.stem} - {image}:
            keys[key] = None if key in keys else index
    return {key: index for key, index in keys.items() if index is not None} | {
        image: index for index, image in enumerate(images)
    }


def _named(path: Path, labels: list[str], classes: Mapping[str, int] | None) -> list[str]:
    """Labels by name, whether they are names or numbers."""
    if classes is not None and not (set(labels) - set(classes)):
        return labels
    if not all(label.isdecimal() for label in labels):
        if classes is not None:
            label = next(label for label in labels if label not in classes)
            raise DataError(f"{path}: " + unknown("class", label, classes))
        return labels
    if classes is None:
        raise DataError(
            f"{path} holds the numbers of classes: expected a class_map beside it, whose order they count"
        )
    numbers, count = [int(label) for label in labels], len(classes)
    start = 0 if min(numbers) == 0 else 1
    if max(numbers) - start >= count or (start == 1 and max(numbers) != count):
        raise DataError(
            f"{path} holds the numbers {min(numbers)} to {max(numbers)} of {count} classes: expected 0 to {count - 1} "
            f"or 1 to {count}, and the first or the last of them"
        )
    names = {number: name for name, number in classes.items()}
    return [names[number - start] for number in numbers]
