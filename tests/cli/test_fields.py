"""The help of `ganglion fit` is read from sources: it has to say what the parser says that is made from the classes."""

from __future__ import annotations

import time
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import pytest
import yaml

from ganglion.tasks import fit
from ganglion_cli import fields
from ganglion_cli.fit import help

#: jsonargparse's own, of no field.
OWN = {"help", "config", "print_config"}


@pytest.fixture(scope="module")
def actions():
    """The options of the real parser by name."""
    made = []

    class Parser(fit.FitCLI):
        def parse_arguments(self, parser, args):
            made.append(parser)
            raise InterruptedError

    with pytest.raises(InterruptedError):
        Parser(*fit._task([]), ["--help"])
    found = {action.dest: action for action in made[0]._actions if action.option_strings}
    hidden = made[0]._links_group._group_actions if hasattr(made[0], "_links_group") else []
    skip = OWN | {action.dest for action in hidden} | set(made[0].groups)
    return {name: a for name, a in found.items() if name not in skip and not name.endswith(".help")}


def listed() -> dict[str, fields.Field]:
    return {
        field.name.replace("-", "_"): field
        for group in fields.groups("classification")
        for field in group.fields
    }


def test_every_option_is_listed_and_no_other(actions):
    assert listed().keys() == actions.keys()


def test_defaults_are_the_parsers(actions):
    for name, field in listed().items():
        expected = actions[name].default
        if field.default is None:
            assert actions[name].required or expected is None, name
            continue
        shown = yaml.safe_load(field.default) if field.default else ""
        if isinstance(expected, tuple):
            expected = list(expected)
            shown = [eval(str(value)) for value in shown]
        assert shown == expected or float(shown) == expected, name


def test_help_texts_are_the_parsers(actions):
    for name, field in listed().items():
        assert field.help, f"{name} has no help"
        assert field.help == fit._HELP.get(name, fields.plain(actions[name].help or "")), name


def kinds(hint: Any) -> set[Any]:
    """What a type takes, in the words of the table, from the type itself."""
    if get_origin(hint) in (Union, UnionType):
        return {kind for part in get_args(hint) for kind in kinds(part)}
    if get_origin(hint) is Literal:
        return {get_args(hint)}
    plain = get_origin(hint) or hint
    named = {
        int: "int",
        float: "float",
        str: "str",
        bool: "bool",
        NoneType: "None",
        list: "list",
        tuple: "list",
    }
    return {named.get(plain, "dict" if plain is dict else "any")}


def test_kinds_are_the_parsers(actions):
    compared = 0
    for name, field in listed().items():
        if (hint := getattr(actions[name], "_typehint", None)) is not None and "any" not in field.kinds:
            assert set(field.kinds) == kinds(hint), name
            compared += 1
    assert compared > 80


def test_help_names_every_field_and_stays_within_the_width(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    text = help()
    assert all(f"  --{field.name}" in text for field in listed().values())
    assert max(map(len, text.splitlines())) <= 80
    positions = [text.index(f"\n{group.name}: ") for group in fields.groups("classification") if group.name]
    assert positions == sorted(positions)


def test_help_takes_no_time():
    """The bound for the whole command is 0.5 s; this is what it spends after Python has started."""
    begun = time.process_time()
    for cached in (fields.groups, fields.task_names, fields._tree):
        cached.cache_clear()
    help()
    assert time.process_time() - begun < 0.4
