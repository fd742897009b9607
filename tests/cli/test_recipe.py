"""Mistakes in the arguments and recipes of `ganglion fit`: a line that names the option as it was written, and the
right one, before anything slow is imported."""

from __future__ import annotations

import re

import pytest
import yaml

from ganglion.recipes import chain
from ganglion.tasks import fit
from ganglion.tasks.classification.training import Classification, ClassificationData
from ganglion_cli.recipe import RecipeError, check, expand

GOOD = ["--model.name", "test_vmamba", "--data.root", "images"]


def said(argv: list[str]) -> str:
    with pytest.raises(RecipeError) as error:
        check(argv)
    message = str(error.value)
    without_folders = re.sub(r"/\S*/", "", message)
    assert "\n" not in message and len(without_folders) < 300
    return message


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["--optimizer.lr", "1e-3"],
        ["--optimizer.lr=5e-4", "--optimizer.betas", "[0.9, 0.95]", "--optimizer.eps", "null"],
        ["--model.model_args.scan", "bidi"],
        ["--model.model_args", "{scan: bidi}"],
        ["--trainer.callbacks", "EarlyStopping", "--trainer.callbacks.monitor", "val/loss"],
        ["--trainer.callbacks+", "Timer"],
        ["--trainer.callbacks.help", "EarlyStopping"],
        ["--trainer.max_steps", "-1"],
        ["--model.mixing", "{mixup: 0.8}"],
        ["--data.class_map", "12"],
        ["--data.name", ""],
        ["--resume"],
        ["--print_config"],
        ["--print_config=skip_default"],
        ["--seed_everything", "3"],
    ],
    ids=" ".join,
)
def test_what_is_right_passes(argv):
    check([*GOOD, *argv])


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (["--optimizer.learning_rate", "1"], ["--optimizer.learning_rate", "optimizer.lr"]),
        (["--optimizer.lrr=1"], ["--optimizer.lrr:", "optimizer.lr"]),
        (["--lr", "1"], ["--lr:", "optimizer.lr"]),
        (["--batch-size", "8"], ["--batch-size:", "data.batch_size"]),
        (["--epochs", "8"], ["--epochs:", "trainer.max_epochs"]),
        (["--optim.lr", "8"], ["--optim.lr:", "optimizer.lr"]),
        (["--trainer.calbacks", "x"], ["trainer.callbacks"]),
        (["--schedule.nam", "cosine"], ["schedule.name"]),  # not taken for an abbreviation
        (["--seed", "1"], ["seed_everything"]),
        (
            ["--model.mixing", "{mixupp: 1}"],
            ["--model.mixing: model.mixing.mixupp", "Did you mean model.mixing.mixup"],
        ),
        (["--optimizer.lr", "fast"], ["--optimizer.lr fast: expected a number"]),
        (["--data.batch_size", "1.5"], ["--data.batch_size 1.5: expected a whole number"]),
        (["--seed_everything", "true"], ["--seed_everything true: expected a whole number"]),
        (["--model.pretrained", "yess"], ["expected true or false"]),
        (["--optimizer.betas", "0.9"], ["expected a list or null"]),
        (["--optimizer.decay", "publshed"], ["published, corrected or mmdet", "Did you mean published?"]),
        (["--optimizer.lr"], ["--optimizer.lr: expected a value"]),
        (["--model.model_args", "bidi"], ["--model.model_args bidi: expected a mapping"]),
        (["--task", "clasification"], ["Did you mean classification?"]),
        (["recipe.yaml"], ["--config recipe.yaml"]),
        (["--trainer", "8"], ["--trainer 8: expected fields"]),
        (["--model", "x"], ["--model x: expected fields (name", "--model.name x"]),  # before it is expanded
        (["-lr", "8"], ["-lr"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_mistakes_on_the_command_line(argv, parts):
    message = said([*GOOD, *argv])
    assert all(part in message for part in parts), message


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("model: {name: x\n data: y\n", ["line 2", "no YAML"]),
        ("just words", ["expected fields", "'just words'"]),
        ("- a\n- b\n", ["expected fields"]),
        ("\x00\x01", ["no YAML"]),
        ("optimizer: {learning_rate: 1}", ["optimizer.learning_rate", "optimizer.lr"]),
        ("optimiser: {lr: 1}", ["optimiser", "optimizer"]),
        ("optimizer: adamw", ["optimizer is 'adamw'", "{name: ...}"]),
        ("schedule: {name: cosin}", ["schedule.name is 'cosin'", "Did you mean cosine?"]),
        ("trainer: {max_epochs: many}", ["trainer.max_epochs is 'many'", "a whole number"]),
        ("model: {mixing: {mixup: high}}", ["model.mixing.mixup is 'high'", "a number"]),
        ("task: detecton", ["task is 'detecton'", "detection"]),
        ("data: {batch_size: [8]}", ["data.batch_size is [8]"]),
        ("3: 4", ["3"]),
    ],
)
def test_mistakes_in_a_recipe(text, parts, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(text)
    message = said([*GOOD, "--config", str(recipe)])
    assert str(recipe) in message and all(part in message for part in parts), message


def test_a_recipe_of_bytes(tmp_path):
    (tmp_path / "recipe.yaml").write_bytes(b"\xff\xfe\x81")
    assert "no text" in said(["--config", str(tmp_path / "recipe.yaml")])


def test_a_recipe_that_is_not_there(tmp_path):
    (tmp_path / "recipe.yaml").write_text("")
    message = said(["--config", str(tmp_path / "recipes.yaml")])
    assert "there is no recipe" in message and f"Did you mean {tmp_path / 'recipe.yaml'}?" in message
    assert "is a folder" in said(["--config", str(tmp_path)])


def write(folder, **recipes):
    for name, text in recipes.items():
        path = folder / f"{name.replace('__', '/')}.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)


def written(cli: fit.FitCLI) -> dict:
    """What a run's config.yaml holds."""
    return yaml.safe_load(cli._dump(cli.config))


def test_a_recipe_builds_on_its_base(tmp_path, monkeypatch):
    """Paths are relative to the file that names them; the nearer recipe's fields hold, field by field."""
    write(
        tmp_path,
        one="model: {name: test_vmamba, drop_rate: 0.1, num_classes: 5}\ntrainer: {max_epochs: 7}\n",
        below__two="base: ../one.yaml\nmodel: {drop_rate: 0.2}\noptimizer: {lr: 1.0e-5}\n",
        three="base: below/two.yaml\nmodel: {num_classes: 6}\n",
    )
    monkeypatch.chdir(tmp_path / "below")
    paths = [path for path, _ in chain("../three.yaml")]
    assert paths == ["../one.yaml", "../below/two.yaml", "../three.yaml"]
    assert not any("base" in recipe for _, recipe in chain("../three.yaml"))
    check(["--config", "../three.yaml", "--data.root", "x"])  # the model's name is the lowest base's
    for words in (["--config", "../three.yaml"], ["-c", "../three.yaml"], ["--config=../three.yaml"]):
        cli = fit.FitCLI(Classification, ClassificationData, [*words, "--data.root=x", "--optimizer.eps=1"])
        model, config = cli.config["model"], cli.config
        assert (model["name"], model["drop_rate"], model["num_classes"]) == ("test_vmamba", 0.2, 6)
        assert (config["trainer"]["max_epochs"], config["optimizer"]["lr"]) == (7, 1e-5)
        saved = written(cli)
        assert "base" not in saved and saved["model"]["num_classes"] == 6 and saved["optimizer"]["eps"] == 1


def test_names_of_before(tmp_path):
    """Recipes and configurations of earlier versions are read; saved are the names of today."""
    write(
        tmp_path,
        old="model: {name: test_vmamba, weights: a.pth}\ndata: {root: x, name: wds/, max_broken: 0.5}",
        new="base: old.yaml\ndata: {max_unreadable: 0.25}",
        both="data: {name: wds/, reader: wds/}",
    )
    argv = ["--config", str(tmp_path / "new.yaml"), "--model.weights", "b.pth", "--data.name=hfds/y"]
    check(argv)
    saved = written(fit.FitCLI(Classification, ClassificationData, argv))
    assert (saved["data"]["reader"], saved["data"]["max_unreadable"]) == ("hfds/y", 0.25)
    assert saved["model"]["initial_checkpoint"] == "b.pth"
    assert not {"name", "max_broken"} & saved["data"].keys() and "weights" not in saved["model"]
    first = fit.FitCLI(Classification, ClassificationData, ["--config", str(tmp_path / "old.yaml")])
    assert (
        first.config["data"]["max_unreadable"] == 0.5
        and first.config["model"]["initial_checkpoint"] == "a.pth"
    )
    assert "both are given" in said(["--config", str(tmp_path / "both.yaml")])
    assert "called data.reader now" in said([*GOOD, "--data", "{name: wds/}"])


def test_later_recipes_override_bases(tmp_path):
    write(tmp_path, one="optimizer: {lr: 1.0}", two="base: one.yaml", three="optimizer: {lr: 3.0}")
    for order, lr in (("three", "two"), 1.0), (("two", "three"), 3.0):
        words = [word for name in order for word in ("--config", str(tmp_path / f"{name}.yaml"))]
        cli = fit.FitCLI(Classification, ClassificationData, [*words, *GOOD])
        assert cli.config["optimizer"]["lr"] == lr


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("base: basis.yaml", ["base is 'basis.yaml'", "there is no recipe", "Did you mean", "bases.yaml?"]),
        ("base: mine.yaml", ["base is 'mine.yaml'", "circle"]),
        ("base: bases.yaml", ["bases.yaml: base is './mine.yaml'", "circle"]),
        ("base: [bases.yaml]", ["base is ['bases.yaml']", "expected the path of a recipe"]),
        ("base:", ["base is None", "expected the path of a recipe"]),
        ("base: .", ["base is '.'", "is a folder"]),
        ("base: wrong.yaml", ["wrong.yaml", "optimizer.learning_rate", "optimizer.lr"]),
        ("base: list.yaml", ["base is 'list.yaml'", "expected fields"]),
        ("model: {base: bases.yaml}", ["model.base", "there is no such field"]),
    ],
)
def test_mistakes_in_a_base(text, parts, tmp_path, capsys):
    write(
        tmp_path,
        mine=text,
        bases="base: ./mine.yaml",
        wrong="optimizer: {learning_rate: 1}",
        list="- a",
    )
    argv = ["--config", str(tmp_path / "mine.yaml")]
    message = said([*GOOD, *argv])
    assert all(part in message for part in parts), message
    assert fit.main([*GOOD, *argv]) in (1, 2)  # from Python, without the command's own check
    assert "base is" not in message or message in capsys.readouterr().err


def test_what_has_to_be_given():
    assert "model.name is missing: give --model.name" in said(["--data.root", "x"])
    assert "data.root is missing: give --data.root" in said(["--model.name", "x"])
    check(["--resume"])


@pytest.mark.parametrize(
    ("argv", "expanded"),
    [
        (
            ["--model", "vmamba_nano", "--data", "images"],
            ["--model.name", "vmamba_nano", "--data.root", "images"],
        ),
        (["--progress=off", "--schedule=cosine"], ["--progress.show=off", "--schedule.name=cosine"]),
        (
            ["--optimizer", "{lr: 1}", "--model", "mine.yaml"],
            ["--optimizer", "{lr: 1}", "--model", "mine.yaml"],
        ),
        (["--ema", "0.99", "--ema.warmup", "true"], ["--ema.decay", "0.99", "--ema.warmup", "true"]),
        (["--trainer", "x", "--model"], ["--trainer", "x", "--model"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_short_forms(argv, expanded):
    assert expand(argv) == expanded
    if "x" not in argv:
        check([*GOOD, *[word for word in expanded if word not in ("--model", "mine.yaml")]])


def test_every_recipe_of_ours_passes():
    from pathlib import Path

    recipes = sorted((Path(__file__).parents[2] / "recipes").glob("*/*.yaml"))
    assert len(recipes) > 10
    for recipe in recipes:
        check(["--config", str(recipe), "--data.root", "x", "--model.name", "y"])
