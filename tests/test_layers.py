"""The floors of the house: no import points upwards, none goes in a circle, and no file is too long to be read."""

from __future__ import annotations

import ast
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

#: From the top; those of one line do not import each other. As in docs/architecture.md.
FLOORS = (
    ("ganglion_cli", "ganglion.__main__"),
    ("ganglion",),  # the package itself: names of all floors
    ("ganglion.explorer", "ganglion.export"),
    ("ganglion.hub",),
    ("ganglion.analysis",),
    ("ganglion.tasks",),
    ("ganglion.training", "ganglion.heads"),
    ("ganglion.models",),
    ("ganglion.data",),
    ("ganglion.layers", "ganglion.compat"),
    ("ganglion.ops",),
)
#: Below all floors: they import nothing but each other.
GROUND = ("ganglion.errors", "ganglion.config", "ganglion.files", "ganglion.recipes")

#: The longest file of Python, in lines. Kernels of an operator are one piece.
LONGEST = 400
KERNELS = ("ganglion/ops/triton/kernels.py",)


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


FILES = {
    module_of(p): p
    for package in ("ganglion", "ganglion_cli")
    for p in sorted((ROOT / package).rglob("*.py"))
}


def imports(module: str, *, runs: bool) -> set[str]:
    """The modules of ours that a module imports, anywhere in it. runs: only what is imported with it."""
    path = FILES[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if runs and (isinstance(node, (ast.FunctionDef, ast.Lambda)) or is_for_types(node)):
            return
        if isinstance(node, ast.Import):
            found.update(name.name for name in node.names)
        if isinstance(node, ast.ImportFrom):
            parts = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*parts, *([node.module] if node.module else [])])
            found.update(
                f"{base}.{name.name}" if f"{base}.{name.name}" in FILES else base for name in node.names
            )
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text(encoding="utf-8")))
    return {name for name in found if name in FILES} - {module}


def is_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def floor_of(module: str) -> int:
    """From the top, 0. A part of a package stands where that does."""
    if module in GROUND:
        return len(FLOORS)
    for number, names in enumerate(FLOORS):
        if any(module == name or (name != "ganglion" and module.startswith(f"{name}.")) for name in names):
            return number
    pytest.fail(f"{module} stands on no floor: name it in FLOORS, and in docs/architecture.md")


def test_arrows_point_down():
    upwards = [
        f"{module} -> {name}"
        for module in FILES
        for name in imports(module, runs=False)
        if floor_of(name) < floor_of(module)
    ]
    assert upwards == []


def test_neighbours_do_not_import_each_other():
    def package(module: str) -> str:
        return ".".join(module.split(".")[:2])

    across = [
        f"{module} -> {name}"
        for module in FILES
        for name in imports(module, runs=False)
        if floor_of(name) == floor_of(module) < len(FLOORS) and package(name) != package(module)
        if floor_of(module)
    ]
    assert across == []


def test_no_circles():
    """Of imports that happen when a module is imported. A package's face imports its files: they may not import it."""
    state: dict[str, int] = {}
    circles: list[str] = []

    def visit(module: str, path: tuple[str, ...]) -> None:
        state[module] = 1
        for name in sorted(imports(module, runs=True)):
            if state.get(name) == 1:
                circles.append(" -> ".join((*path[path.index(name) :], name)))
            elif name not in state:
                visit(name, (*path, name))
        state[module] = 2

    for module in FILES:
        if module not in state:
            visit(module, (module,))
    assert circles == []


def test_what_the_test_sees(tmp_path, monkeypatch):
    """An arrow upwards, and a circle, made on purpose."""
    low, high = tmp_path / "low.py", tmp_path / "high.py"
    low.write_text("def f():\n    from ganglion.tasks import high\n")
    high.write_text("from ..ops import low\n")
    monkeypatch.setitem(FILES, "ganglion.ops.low", low)
    monkeypatch.setitem(FILES, "ganglion.tasks.high", high)
    assert "ganglion.tasks.high" in imports("ganglion.ops.low", runs=False)
    assert "ganglion.tasks.high" not in imports("ganglion.ops.low", runs=True)
    with pytest.raises(AssertionError, match=r"low -> ganglion\.tasks\.high"):
        test_arrows_point_down()
    low.write_text("from ganglion.tasks import high\n")
    with pytest.raises(
        AssertionError, match=r"ganglion\.ops\.low -> ganglion\.tasks\.high -> ganglion\.ops\.low"
    ):
        test_no_circles()


def test_no_file_is_too_long():
    try:
        listed = subprocess.run(
            ["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.split()
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    lines = {name: len((ROOT / name).read_text(encoding="utf-8").splitlines()) for name in listed}
    assert {name: n for name, n in lines.items() if n > LONGEST and name not in KERNELS} == {}


#: Lines where pyright is told to look away.
MOST_IGNORED = 15


def test_what_types_cannot_say_is_little_and_has_a_reason():
    found = [
        (path.relative_to(ROOT), line.split("# pyright: ignore")[1])
        for path in FILES.values()
        for line in path.read_text().splitlines()
        if "# pyright: ignore" in line
    ]
    assert len(found) <= MOST_IGNORED
    without = [str(file) for file, rest in found if not rest.partition("]")[2].strip()]
    assert not without, f"no reason given in {without}"
