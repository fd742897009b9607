"""A recipe names Lightning's classes and ours; code of others runs where the command line allows it."""

from __future__ import annotations

import sys

import pytest

from ganglion.tasks import fit

FOREIGN = """
from pathlib import Path
Path({seen!r}).write_text("imported")
from lightning.pytorch import Callback
class Mine(Callback):
    pass
"""


@pytest.fixture
def foreign(tmp_path, monkeypatch):
    """A package on the path, and the file that its import writes."""
    (tmp_path / "foreign_code.py").write_text(FOREIGN.format(seen=str(tmp_path / "seen")))
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path / "seen"
    sys.modules.pop("foreign_code", None)


def arguments(folder, *more: str) -> list[str]:
    """Of a run that ends at its data, after all classes were made."""
    return [
        *more,
        "--model.name=test_vmamba",
        f"--data.root={folder / 'nowhere'}",
        f"--output={folder / 'run'}",
    ]


NAMED = [
    ["--trainer.callbacks=foreign_code.Mine"],
    ["--trainer.callbacks+=foreign_code.Mine"],
    ["--trainer.callbacks", "[{class_path: foreign_code.Mine}]"],
    ["--trainer.logger", "{class_path: foreign_code.Mine}"],
    ["--trainer.plugins=foreign_code.Mine"],
    ["--trainer", "{callbacks: [{class_path: foreign_code.Mine}]}"],
    ["--trainer.callbacks", "{class_path: LambdaCallback, init_args: {on_fit_start: foreign_code.Mine}}"],
]


@pytest.mark.parametrize("words", NAMED, ids=lambda words: words[-1])
def test_foreign_classes_are_not_even_imported(words, foreign, tmp_path, capsys):
    assert fit.main(arguments(tmp_path, *words)) in (1, 2)
    said = capsys.readouterr().err
    assert "foreign_code.Mine" in said and "--allow-code" in said and "Traceback" not in said
    assert not foreign.exists() and "foreign_code" not in sys.modules
    assert not (tmp_path / "run").exists()


def test_what_looks_like_a_class_elsewhere_stays_a_mapping(foreign, tmp_path):
    assert fit.main(arguments(tmp_path, "--model.model_args", "{x: {class_path: foreign_code.Mine}}")) == 1
    assert not foreign.exists()


def test_a_recipe_cannot_allow_itself(foreign, tmp_path, capsys):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("allow_code: true\ntrainer: {callbacks: [{class_path: foreign_code.Mine}]}\n")
    assert fit.main(arguments(tmp_path, "--config", str(recipe))) in (1, 2)
    assert "--allow-code" in capsys.readouterr().err and not foreign.exists()


def test_code_that_the_command_line_allows(foreign, tmp_path, capsys):
    words = ["--allow-code", "--trainer.callbacks=foreign_code.Mine"]
    assert fit.main(arguments(tmp_path, *words)) == 1
    assert foreign.exists() and "nowhere" in capsys.readouterr().err
    # One command's permission is not the next one's.
    del sys.modules["foreign_code"]
    foreign.unlink()
    assert fit.main(arguments(tmp_path, words[1])) == 2
    assert not foreign.exists()


def test_lightnings_classes_need_no_permission(tmp_path, capsys):
    callbacks = (
        "[{class_path: EarlyStopping, init_args: {monitor: val/loss}}, lightning.pytorch.callbacks.Timer]"
    )
    assert fit.main(arguments(tmp_path, "--trainer.callbacks", callbacks)) == 1
    assert "nowhere" in capsys.readouterr().err
