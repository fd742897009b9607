"""The options of `ganglion fit`, read from the sources of the classes that they build.

Importing those classes brings PyTorch and Lightning, which takes seconds. Their signatures and docstrings are text,
read in a tenth of one: so help, and errors in names and values, come at once, and cannot differ from the classes.
`FitCLI.add_arguments_to_parser` says which classes there are.
"""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from inspect import cleandoc
from pathlib import Path
from types import ModuleType
from typing import Any

_TASKS, _FIT = ("ganglion", "tasks"), ("ganglion", "tasks", "fit")  # what there is; where the parser is made
#: What stands for classes in its calls: Lightning's, and those that a task's training.py names.
_CLASSES = {"self.trainer_class": "Trainer", "self._model_class": "TASK", "self._datamodule_class": "DATA"}


@dataclass(frozen=True)
class Field:
    """One option.

    name: as in `optimizer.lr`. help: one paragraph. kinds: what it may hold, see `alternatives`. default: as a recipe
    writes it, None if the field has to be given. flag: whether the option takes no value. label: name of the value.
    """

    name: str
    help: str
    kinds: tuple[Any, ...]
    default: str | None = None
    flag: bool = False
    label: str = ""

    @property
    def metavar(self) -> str:
        """For example FLOAT, {true,false}, INT|FLOAT, or the label if there is one."""
        if self.label:
            return self.label
        names = {
            "int": "INT",
            "float": "FLOAT",
            "str": "TEXT",
            "bool": "{true,false}",
            "list": "LIST",
            "dict": "MAP",
        }
        shown = [
            "{" + ",".join(map(str, kind)) + "}" if isinstance(kind, tuple) else names.get(kind, "VALUE")
            for kind in self.kinds
            if kind != "None"
        ]
        return "" if self.flag else "VALUE" if "VALUE" in shown else "|".join(dict.fromkeys(shown))

    @property
    def open(self) -> bool:
        """Whether there may be fields below it that are not listed here."""
        return "any" in self.kinds or "dict" in self.kinds


@dataclass(frozen=True)
class Group:
    """The fields of one class. name: what they begin with. title: the class in a line."""

    name: str
    title: str
    fields: tuple[Field, ...]


def alternatives(annotation: ast.expr) -> tuple[Any, ...]:
    """What a field may hold: "int", "float", "str", "bool", "None", "list", "dict", a tuple of choices, or "any"."""
    match annotation:
        case ast.BinOp(left=left, right=right):
            return *alternatives(left), *alternatives(right)
        case ast.Subscript(value=ast.Name("Optional"), slice=inner):
            return *alternatives(inner), "None"
        case ast.Subscript(value=ast.Name("Union"), slice=ast.Tuple(parts)):
            return tuple(kind for part in parts for kind in alternatives(part))
        case ast.Subscript(value=ast.Name("Literal"), slice=choices):
            value = ast.literal_eval(choices)
            return (value if isinstance(value, tuple) else (value,),)
        case ast.Subscript(value=ast.Name("list" | "tuple" | "Sequence")):
            return ("list",)
        case ast.Subscript(value=ast.Name("dict")) | ast.Name("dict"):
            return ("dict",)
        case ast.Constant(None):
            return ("None",)
        case ast.Name("int" | "float" | "str" | "bool" as name):
            return (name,)
    return ("any",)


@cache
def task_names() -> tuple[str, ...]:
    """Of this library's tasks; others are folders."""
    return tuple(_constant(_source(*_TASKS), "TASKS"))


def is_task(value: str) -> bool:
    """Whether this is the name of a task, or the folder of one."""
    return value in task_names() or (_folder(value) / "training.py").is_file()


def _folder(task: str) -> Path:
    return _source(*_TASKS).parent / task if task in task_names() else Path(task)


@cache
def groups(task: str) -> tuple[Group, ...]:
    """The options of a task in the order of the help; those of no class first, in a group without a name.

    task: its name, or its folder. Raises LookupError where a task's files do not say them.
    """
    path, training = _source(*_FIT), _folder(task) / "training.py"
    alone: list[Field] = []
    found: list[Group] = []
    hidden: set[str] = set()
    for call in _calls(path):
        assert isinstance(call.func, ast.Attribute)
        method, given = call.func.attr, call.args
        if method == "add_argument":
            alone.append(_argument(call))
        elif method == "link_arguments":
            hidden.add(ast.literal_eval(given[1]))
        elif method in ("add_lightning_class_args", "add_class_arguments"):
            name = _CLASSES.get(ast.unparse(given[0]), ast.unparse(given[0]))
            where = training if name in ("TASK", "DATA") else path
            definition = _definition(where, name)
            if definition is None:
                raise LookupError(
                    f"{where} has no line `{name} = ...` of one class, which says a task's fields"
                )
            found += _groups(ast.literal_eval(given[1]), *definition)
    monitor, mode = _constant(_folder(task) / "metrics.py", "MONITOR")
    defaults = _constant(path, "_DEFAULTS") | {
        "checkpoint.monitor": f"val/{monitor}",
        "checkpoint.mode": mode,
    }
    words = _constant(path, "_HELP")
    shown = [Group("", "a run", tuple(alone))]
    for group in found:
        if group.name in hidden:
            continue
        kept = [
            replace(
                field,
                default=_text(defaults[field.name]) if field.name in defaults else field.default,
                help=words.get(field.name, field.help),
            )
            for field in group.fields
            if field.name not in hidden
        ]
        shown.append(replace(group, fields=tuple(kept)))
    return tuple(shown)


def _groups(prefix: str, path: Path, node: ast.AST) -> list[Group]:
    """The group of a class, and of each dataclass among its fields."""
    assert isinstance(node, ast.ClassDef)
    doc, fields, below = _doc(node), [], []
    described = _described(doc)
    where, maker = _maker(path, node)
    described = _described(_doc(maker)) | described
    for name, annotation, default in _parameters(maker):
        if isinstance(annotation, ast.Name) and (found := _definition(where, annotation.id)) is not None:
            inside, definition = found
            if isinstance(definition, ast.ClassDef):
                if _is_dataclass(definition):
                    below += _groups(f"{prefix}.{name}", inside, definition)
                    continue
            else:
                annotation = definition  # an alias of a type
        shown = None if default is None else _text(default)
        fields.append(Field(f"{prefix}.{name}", described.get(name, ""), alternatives(annotation), shown))
    return [Group(prefix, doc.partition("\n")[0].rstrip("."), tuple(fields)), *below]


def _maker(path: Path, node: ast.ClassDef) -> tuple[Path, ast.ClassDef]:
    """The class that says what another is made from, and its file: that one, or the nearest above it."""
    if _is_dataclass(node) or any(
        isinstance(line, ast.FunctionDef) and line.name == "__init__" for line in node.body
    ):
        return path, node
    for base in node.bases:
        found = _definition(path, base.id) if isinstance(base, ast.Name) else None
        if found is not None and isinstance(found[1], ast.ClassDef):
            return _maker(found[0], found[1])
    return path, node


def _parameters(node: ast.ClassDef) -> Iterator[tuple[str, ast.expr, ast.expr | None]]:
    """Name, annotation and default of what a class is made from."""
    if _is_dataclass(node):
        for line in node.body:
            if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name):
                yield line.target.id, line.annotation, line.value
        return
    inits = [line for line in node.body if isinstance(line, ast.FunctionDef) and line.name == "__init__"]
    if not inits:  # of a class that is made from nothing
        return
    (init,) = inits
    plain = init.args.args[1:]
    missing: list[ast.expr | None] = [None] * (len(plain) - len(init.args.defaults))
    for argument, default in (
        *zip(plain, [*missing, *init.args.defaults], strict=True),
        *zip(init.args.kwonlyargs, init.args.kw_defaults, strict=True),
    ):
        yield argument.arg, argument.annotation or ast.Name("Any"), default


def _is_dataclass(node: ast.ClassDef) -> bool:
    return any(ast.unparse(decorator).startswith("dataclass") for decorator in node.decorator_list)


def _doc(node: ast.ClassDef) -> str:
    """The docstrings of a class and of its __init__."""
    init = [line for line in node.body if isinstance(line, ast.FunctionDef) and line.name == "__init__"]
    return "\n\n".join(ast.get_docstring(part) or "" for part in (node, *init)).strip()


def _described(doc: str) -> dict[str, str]:
    """What a docstring says below `Args:`, by name."""
    if (start := re.search(r"^Args:\n((?:    .*\n|[ \t]*\n)*)", doc + "\n", re.MULTILINE)) is None:
        return {}
    entries = re.split(r"^(\w+)(?: \(.*?\))?:", cleandoc(start[1]), flags=re.MULTILINE)
    return {name: plain(text) for name, text in zip(entries[1::2], entries[2::2], strict=True)}


def plain(text: str) -> str:
    """A paragraph of a docstring without markup, and without the default, which is shown anyway."""
    text = re.sub(r":\w+:`~?(?:[\w.]*\.)?(\w+)`", r"`\1`", text).replace("``", "`")
    text = re.sub(r"\s*Defaults?(?: value is|:| to)\s*`[^`]*`\.?", "", text)
    return " ".join(text.split()).rstrip(".")


def _argument(call: ast.Call) -> Field:
    given = {word.arg: word.value for word in call.keywords}
    flag = "action" in given
    kinds = alternatives(given.get("type", ast.Name("bool" if flag else "str")))
    default = given.get("default", ast.Constant(False if flag else None))
    if isinstance(default, ast.Constant) and default.value is None:
        kinds += ("None",)
    name, help = ast.literal_eval(call.args[0]).lstrip("-"), ast.literal_eval(given["help"])
    label = ast.literal_eval(given.get("metavar", ast.Constant("")))
    return Field(name, help, kinds, _text(default), flag, label)


def version() -> str:
    """The package's own."""
    return _constant(_source("ganglion"), "__version__")


def _text(value: Any) -> str:
    """A default as a recipe writes it."""
    if isinstance(value, ast.expr):
        try:
            value = ast.literal_eval(value)
        except ValueError:  # arithmetic, which says more than its result
            return ast.unparse(value).replace("(", "[").replace(")", "]")
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(map(_text, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value)


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _source(package: str, *below: str) -> Path:
    """The file of a module, found without importing anything."""
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.origin is not None
    path = Path(spec.origin).parent.joinpath(*below)
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def without_package(name: str) -> ModuleType:
    """A module of ganglion/ that imports nothing of it, read without the package, whose import takes seconds."""
    path = _source("ganglion", name)
    spec = importlib.util.spec_from_file_location(f"{__package__}._{name}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _constant(path: Path, name: str) -> Any:
    found = _definition(path, name)
    if found is None or not isinstance(found[1], ast.expr):
        raise LookupError(f"{path} has no line `{name} = ...` of one value")
    return ast.literal_eval(found[1])


def _calls(path: Path) -> Iterator[ast.Call]:
    """What `FitCLI.add_arguments_to_parser` calls, in order."""
    found = _definition(path, "FitCLI")
    assert found is not None and isinstance(found[1], ast.ClassDef)
    for line in found[1].body:
        if isinstance(line, ast.FunctionDef) and line.name == "add_arguments_to_parser":
            for statement in line.body:
                if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
                    yield statement.value


def _definition(path: Path, name: str) -> tuple[Path, ast.expr | ast.ClassDef] | None:
    """Where a name of a module is defined, and its class or value; None if it comes from nowhere in these packages."""
    for line in _tree(path).body:
        match line:
            case ast.ClassDef() if line.name == name:
                return path, line
            case ast.Assign(targets=[ast.Name(target)], value=value) if target == name:
                # Another name of what is defined, or imported, here.
                return _definition(path, value.id) if isinstance(value, ast.Name) else (path, value)
            case ast.AnnAssign(target=ast.Name(target), value=ast.expr() as value) if target == name:
                return path, value
            case ast.ImportFrom(module=module, names=names, level=level):
                for alias in names:
                    if (alias.asname or alias.name) == name:
                        parts = module.split(".") if module else []
                        if level:
                            base = path.parents[level - 1].joinpath(*parts)
                            file = base / "__init__.py" if base.is_dir() else base.with_suffix(".py")
                        elif parts[0] in ("ganglion", "lightning"):
                            file = _source(*parts)
                        else:
                            return None
                        return _definition(file, alias.name)
    return None
