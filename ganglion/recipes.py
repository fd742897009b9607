"""Recipes as files: read, with the recipes that they build on.

A recipe may begin with `base: FILE`, a path relative to its own file. It means `--config FILE` before it: what the
recipe does not name is as in the base. A base may have a base.

The command reads this file without the package, whose import takes seconds: it needs PyYAML only.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

#: The field that names the recipe to build on.
BASE = "base"
#: Fields by the names that they had before, which recipes and runs of that time still have, and what they are now.
RENAMED = {
    "data.name": "data.reader",
    "data.max_broken": "data.max_unreadable",
    "model.weights": "model.initial_checkpoint",
}
#: Options that name a recipe.
OPTIONS = ("--config", "-c")


class RecipeError(ValueError):
    """The message names the option, or file and field, as the user wrote it."""


def read(path: str, written: str = "") -> dict[str, Any]:
    """The mapping in a YAML or JSON file, as it stands there; an empty file holds no fields.

    written: what the message of an error begins with, `--config PATH` if empty. Raises RecipeError where there is no
    such mapping.
    """
    file, written = Path(path), written or f"--config {path}"
    if file.is_dir():
        inside = file / "config.yaml"
        hint = f"a run is resumed by --resume {path}" if inside.exists() else "expected a YAML file"
        raise RecipeError(f"{written} is a folder: {hint}")
    try:
        recipe = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        beside = [p.name for p in file.parent.glob("*.y*ml")] if file.parent.is_dir() else []
        near = difflib.get_close_matches(file.name, beside, n=1)
        hint = f" Did you mean {file.parent / near[0]}?" if near else ""
        raise RecipeError(f"{written}: there is no recipe {path}.{hint}") from None
    except OSError as error:
        raise RecipeError(f"{written}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise RecipeError(f"{written}: expected a YAML file, this is no text") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or str(error).partition("\n")[0]
        raise RecipeError(f"{written}{line}: this is no YAML: {problem}") from None
    if recipe is None:
        return {}
    if not isinstance(recipe, dict):
        text = repr(recipe)
        text = text if len(text) <= 40 else text[:37] + "..."
        raise RecipeError(f"{written}: expected fields (`model:`, `data:`, ...), not {text}")
    return recipe


def renamed(recipe: dict[str, Any], where: str) -> dict[str, Any]:
    """A recipe with the fields' names of today. Raises RecipeError where it has a field by both names."""
    recipe = dict(recipe)
    for old, new in RENAMED.items():
        (group, before), now = old.split("."), new.rpartition(".")[2]
        fields = recipe.get(group)
        if isinstance(fields, dict) and before in fields:
            if now in fields:
                raise RecipeError(f"{where}: {old} is called {new} now, and both are given")
            recipe[group] = {now if name == before else name: value for name, value in fields.items()}
    return recipe


def chain(path: str) -> list[tuple[str, dict[str, Any]]]:
    """The recipes that one is made of, from the lowest base to itself: their paths, and their fields without `base`.

    Raises RecipeError for a file without fields, a base that is missing or no path, and bases that form a circle.
    """
    found: list[tuple[str, dict[str, Any]]] = []
    seen: list[str] = []
    written = ""
    while True:
        recipe = renamed(read(path, written), path)
        seen.append(os.path.realpath(path))
        base = recipe.pop(BASE, None) if BASE in recipe else ""
        found.insert(0, (path, recipe))
        if base == "":
            return found
        written = f"{path}: {BASE} is {base!r}"
        if not isinstance(base, str):
            raise RecipeError(f"{written}: expected the path of a recipe, relative to this one")
        path = os.path.normpath(os.path.join(os.path.dirname(path), base))
        if os.path.realpath(path) in seen:
            raise RecipeError(f"{written}: a circle of bases, that recipe builds on this one")


def with_bases(argv: Sequence[str]) -> list[str]:
    """The arguments of a command with every base written out as a `--config` of its own, before its recipe's.

    A recipe that names a base, or has names of before, is given as text instead of a path. Options of before become
    those of today. Raises RecipeError as `chain`. What is no file stays as it is.
    """
    words: list[str] = []
    left = list(argv)
    while left:
        word = left.pop(0)
        option, equals, path = word.partition("=")
        given = [word]
        if (field := option.removeprefix("--")) in RENAMED and option != field:
            given = [f"--{RENAMED[field]}{equals}{path}"]
        if option in OPTIONS and not equals and left:
            path = left.pop(0)
            given.append(path)
        if option in OPTIONS and os.path.isfile(path):
            given = [
                f"--config={part if read(part) == recipe else yaml.safe_dump(recipe, sort_keys=False)}"
                for part, recipe in chain(path)
            ]
        words += given
    return words
