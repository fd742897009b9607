"""What is wrong with the arguments and the recipes of `ganglion fit`, as far as names and kinds of values tell."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from . import fields
from .options import nearest

if TYPE_CHECKING:
    from ganglion.recipes import RENAMED, RecipeError, chain, read
else:
    _recipes = fields.without_package("recipes")
    RENAMED, RecipeError = _recipes.RENAMED, _recipes.RecipeError
    chain, read = _recipes.chain, _recipes.read

_EXPECTED = {
    "int": "a whole number",
    "float": "a number",
    "str": "a text",
    "bool": "true or false",
    "None": "null",
    "list": "a list",
    "dict": "a mapping of fields, {name: value}",
}
#: The field that an option stands for which names its group only.
SHORT = {
    "model": "name",
    "data": "root",
    "optimizer": "name",
    "schedule": "name",
    "ema": "decay",
    "progress": "show",
}
#: Options that the parser has by itself, and whether they take a value.
_OWN = {"config": True, "c": True, "help": False, "h": False, "print_config": False}


@dataclass(frozen=True)
class Given:
    """A value that the user gave: where ("" on the command line), for which field."""

    where: str
    name: str
    value: Any

    def __str__(self) -> str:
        if self.where:
            return f"{self.where}: {self.name} is {self.value!r}"
        return f"--{self.name} {self.value}"

    @property
    def written(self) -> str:
        return f"{self.where}: {self.name}" if self.where else f"--{self.name}"


def check(argv: Sequence[str]) -> None:
    """Raise RecipeError for what names no field, for values of the wrong kind, and for fields that are missing."""
    words = [(RENAMED.get(name, name), value) for name, value in _words(argv)]
    named = [value for name, value in words if name in ("config", "c") and value is not None]
    recipes = [recipe for path in named for recipe in chain(path)]
    tasks = [Given(path, "task", recipe["task"]) for path, recipe in recipes if "task" in recipe]
    tasks += [Given("", name, value) for name, value in words if name == "task"]
    # What a folder holds is code: the command line names one, no recipe does.
    task = tasks[-1] if tasks else Given("", "task", "classification")
    known = task.value in fields.task_names() if task.where else fields.is_task(str(task.value))
    if not known:
        folder = "" if task.where else "; or the folder of another"
        raise RecipeError(f"{task}: {_no_such('task', task.value, fields.task_names())}{folder}")
    table = Table(str(task.value))
    seen: set[str] = set()
    for path, recipe in recipes:
        for given in table.flat(path, recipe):
            table.check(given)
            seen.add(given.name)
    for name, value in words:
        if name in _OWN:
            continue
        field = table.lookup(name, f"--{name}")
        if field is not None and not field.flag and value is None and name != "resume":
            raise RecipeError(f"--{name}: expected a value, {field.metavar}")
        inside = table.inside(name, value)
        for given in [Given("", name, value)] if inside is None else table.flat(*inside, f"{name}."):
            table.check(given)
            seen.add(given.name)
    if not any(name in ("resume", "print_config") or name.endswith(".help") for name, _ in words):
        table.check_complete(seen)


def expand(argv: Sequence[str]) -> list[str]:
    """The words with every short form written out: `--model NAME` is `--model.name NAME`, and so on, see SHORT."""
    words = []
    for i, word in enumerate(argv):
        option, equals, value = word.partition("=")
        group = option.removeprefix("--")
        if option.startswith("--") and group in SHORT:
            given = value if equals else "".join(argv[i + 1 : i + 2])
            holds_fields = isinstance(_parsed(given), dict) or given.endswith((".yaml", ".yml", ".json"))
            if given and not given.startswith("--") and not holds_fields:
                word = f"--{group}.{SHORT[group]}{equals}{value}"
        words.append(word)
    return words


class Table:
    """The fields of a task by name."""

    def __init__(self, task: str):
        try:
            self.groups = {group.name: group for group in fields.groups(task)}
        except LookupError as error:
            raise RecipeError(f"the task {task}: {error}") from error
        self.fields = {field.name: field for group in self.groups.values() for field in group.fields}
        self._short = {name.rpartition(".")[2]: name for name in reversed(self.fields)}

    def lookup(self, name: str, written: str) -> fields.Field | None:
        """The field of that name; None for a group, and for what is below a field that holds anything.

        Raises RecipeError where there is no such field.
        """
        if name in self.fields:
            return self.fields[name]
        parts = name.split(".")
        above = [".".join(parts[:i]) for i in range(1, len(parts))]
        if name in self.groups or any(a in self.fields and self.fields[a].open for a in above):
            return None
        if parts[-1] == "help" and above[-1] in {**self.fields, **self.groups}:
            return None
        raise RecipeError(f"{written}: there is no such field.{self._nearest(name)}")

    def _nearest(self, name: str) -> str:
        """The fields that may be meant: of that name elsewhere, begun or abbreviated by it, or spelt alike."""
        if name in RENAMED:
            return f" It is called {RENAMED[name]} now."
        name = name.replace("-", "_")
        group, _, last = name.rpartition(".")
        same = [self._short[last]] if last in self._short else []
        same += [known for known in self.fields if known.startswith(name)]
        within = [known for known in self.fields if known.startswith(f"{group}.")] if group else []
        same += [known for known in within or self.fields if _abbreviates(last, known.rpartition(".")[2])]
        hint = nearest(name, self.fields, first=same)
        return hint or nearest(last, self._short, others=self._short)

    def inside(self, name: str, value: str | None) -> tuple[str, dict[str, Any]] | None:
        """What an option holds that names a group, `--optimizer '{lr: 1}'` or a file: where it is, and its fields."""
        if name not in self.groups or value is None:
            return None
        if isinstance(parsed := _parsed(value), dict):
            return f"--{name}", parsed
        return (value, read(value)) if Path(value).is_file() else None

    def flat(self, where: str, recipe: dict[str, Any], prefix: str = "") -> Iterator[Given]:
        """The values of a recipe by the fields' full names."""
        for key, value in recipe.items():
            name = f"{prefix}{key}"
            if self.lookup(name, f"{where}: {name}") is None and isinstance(value, dict):
                yield from self.flat(where, value, f"{name}.")
            else:
                yield Given(where, name, value)

    def check(self, given: Given) -> None:
        """Raise RecipeError unless the value is of a kind that the field holds."""
        field = self.fields.get(given.name)
        if field is None:
            group = self.groups.get(given.name)
            if group is not None:
                some = [f.name.rpartition(".")[2] for f in group.fields[:3]]
                example = (
                    f"--{given.name}.{some[0]} {given.value}" if not given.where else f"{{{some[0]}: ...}}"
                )
                raise RecipeError(f"{given}: expected fields ({', '.join(some)}, ...), as in {example}")
            return
        value = given.value
        if field.flag or (value is None and not given.where):
            return
        if not given.where:
            value = _parsed(str(value))
        if any(_fits(value, kind, text=not given.where) for kind in field.kinds):
            return
        choices = [str(choice) for kind in field.kinds if isinstance(kind, tuple) for choice in kind]
        expected = [_EXPECTED[kind] for kind in field.kinds if not isinstance(kind, tuple)]
        raise RecipeError(
            f"{given}: expected {_either([*choices, *expected])}.{nearest(str(value), choices)}"
        )

    def check_complete(self, seen: set[str]) -> None:
        """Raise RecipeError if a field without a default is not among those given."""
        for field in self.fields.values():
            if field.default is None and field.name not in seen:
                raise RecipeError(
                    f"{field.name} is missing: give --{field.name} {field.metavar} ({field.help})"
                )


def _words(argv: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    """Options and their values. Raises RecipeError for words that belong to no option."""
    words = list(argv)
    while words:
        word = words.pop(0)
        if not word.startswith("-") or word == "-":
            hint = (
                f"a recipe is named by --config {word}" if word.endswith((".yaml", ".yml", ".json")) else ""
            )
            raise RecipeError(f"{word!r} belongs to no option: {hint or 'expected --FIELD VALUE'}")
        name, equals, value = word.partition("=")
        name = name.lstrip("-").rstrip("+")
        if word.startswith("-") and not word.startswith("--") and name not in ("c", "h"):
            raise RecipeError(f"there is no option {word}. Did you mean -{word}?")
        takes = _OWN.get(name, True)
        if not equals and takes and words and not words[0].startswith("--"):
            yield name, words.pop(0)
        else:
            yield name, value if equals else None


def _parsed(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _fits(value: Any, kind: Any, *, text: bool) -> bool:
    """Whether a value may be meant as one of that kind. text: it is from the command line, where all is text."""
    if kind == "any":
        return True
    if isinstance(kind, tuple):
        off = "off" in kind and value is False  # which YAML takes for false
        return off or value in kind or str(value) in map(str, kind)
    if kind in ("int", "float"):
        if isinstance(value, str):  # YAML takes 1e-3 for one
            try:
                {"int": int, "float": float}[kind](value)
            except ValueError:
                return False
            return True
        return isinstance(value, int if kind == "int" else (int, float)) and not isinstance(value, bool)
    if kind == "str":
        return text or isinstance(value, (str, int, float))
    types: dict[str, Any] = {"bool": bool, "None": type(None), "list": (list, tuple), "dict": dict}
    return isinstance(value, types[kind])


def _abbreviates(a: str, b: str) -> bool:
    """Whether one is made of the other's initials, as lr of learning_rate."""
    return any("".join(p[0] for p in x.split("_") if p) == y for x, y in ((a, b), (b, a)) if "_" in x)


def _either(options: Sequence[str]) -> str:
    return " or ".join(filter(None, (", ".join(options[:-1]), options[-1])))


def _no_such(kind: str, value: Any, valid: Sequence[str]) -> str:
    return f"there is no such {kind}.{nearest(str(value), valid)} Valid: {', '.join(valid)}"
