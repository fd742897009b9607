"""Train a network: a recipe, and whatever you change in it.

The arguments are read by Lightning's command line, which takes them from the classes that they build. Help, and what is
wrong with names and kinds of values, comes from the sources of these classes, before anything slow is imported.
"""

from __future__ import annotations

import importlib.util
import shutil
import sys
import textwrap
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from .options import say_loading

USAGE = "usage: ganglion fit --config RECIPE.yaml [--FIELD VALUE ...]"

DESCRIPTION = """\
Train a network.

    ganglion fit --config recipes/finetune/folder.yaml --data.root DIR
    ganglion fit --config RECIPE.yaml --optimizer.lr 5e-4 --trainer.max_epochs 9
    ganglion fit --model vmamba_nano --data DIR --output runs/one
    ganglion fit --resume            # resumes the last run
    ganglion fit --resume runs/one   # resumes that one

Every field of a recipe is an option; options override the recipe. Short forms:
--model NAME, --data DIR, --optimizer NAME, --schedule NAME, --progress off.
Ctrl-C and SIGTERM write a checkpoint before they end the run.
"""

_OWN = """\
  -h, --help                    show this help
  -c, --config RECIPE.yaml      a recipe; a second overrides fields of the first
  --print_config                show the recipe that comes out, and do nothing
"""


def main(argv: Sequence[str]) -> int:
    """Run `ganglion fit` with the arguments after the verb. Returns the exit status."""
    missing = [name for name in ("lightning", "jsonargparse") if importlib.util.find_spec(name) is None]
    if missing:
        return _fail(f"{' and '.join(missing)} not installed: pip install 'ganglion[train]'")
    if not argv:
        print(f"{USAGE}\n\n{DESCRIPTION}\nganglion fit --help lists every field.", file=sys.stderr)
        return 2

    from .recipe import RecipeError, check, expand

    if "-h" in argv or "--help" in argv:
        try:
            print(help(list(argv)))
        except LookupError as error:
            return _fail(error)
        return 0
    argv = expand(argv)
    try:
        check(argv)
    except RecipeError as error:
        return _fail(error)
    say_loading("PyTorch, timm and Lightning")

    from ganglion.tasks.fit import main

    return main(argv, _write_card)


def _write_card(folder: Path, task: str) -> None:
    """The card of what a run has trained; a line where it has none."""
    from ganglion.hub import CardError, write_card
    from ganglion.tasks.loaded_model import load_model

    try:
        write_card(load_model(folder, task=task), folder / "README.md")
    except (CardError, OSError) as error:
        print(error)


def _fail(error: object) -> int:
    print(f"ganglion fit: error: {error}", file=sys.stderr)
    return 2


def help(argv: Sequence[str] = ()) -> str:
    """Every option, with its default. argv: may name a task by `--task`."""
    from . import fields

    words = [(word, value) for word, value in pairwise(argv) if word == "--task"]
    words += [("--task", word.removeprefix("--task=")) for word in argv if word.startswith("--task=")]
    asked = [value for _, value in words if fields.is_task(value)]
    task = asked[-1] if asked else "classification"
    width = min(100, shutil.get_terminal_size((100, 24)).columns)
    lines = [USAGE, "", DESCRIPTION, "options:", _OWN.rstrip()]
    for group in fields.groups(task):
        if group.name:
            lines += ["", *textwrap.wrap(f"{group.name}: {group.title}", width)]
        for field in group.fields:
            shown = "required" if field.default is None else field.default or "''"
            left, right = f"  --{field.name} {field.metavar}", f"{field.help} [{shown}]"
            wrapped = textwrap.wrap(right, width - 32)
            if len(left) > 30:
                lines.append(left)
                left = ""
            lines += [
                f"{start:<32}{text}".rstrip() for start, text in zip([left] + [""] * len(wrapped), wrapped)
            ]
    lines += ["", "null: none. On one of Lightning's classes: --trainer.callbacks.help CLASS"]
    return "\n".join(lines)
