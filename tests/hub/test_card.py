"""Cards of networks: what they say, and that the hub can read it."""

from __future__ import annotations

import dataclasses
import re

import pytest
import timm
from huggingface_hub import ModelCard, ModelCardData

import ganglion
from ganglion.export.model import _card
from ganglion.hub import CardError, model_card, write_card
from ganglion.tasks import find_task
from ganglion_cli import main
from tests.cli.networks import NAMES, export, picture


def loaded(folder, **training):
    return dataclasses.replace(ganglion.load_model(export(folder)), training=training)


@pytest.fixture
def model(tmp_path):
    recipe = {"seed_everything": 3, "data.root": "ants", "optimizer.lr": 0.01}
    return loaded(
        tmp_path / "model", measured={"val/top1": 87.5, "val/loss": 0.4}, images=90, epochs=2, recipe=recipe
    )


def test_what_a_card_says(model):
    card = ModelCard(model_card(model, licence="apache-2.0"))
    assert isinstance(card.data, ModelCardData)
    assert (card.data.license, card.data.pipeline_tag, card.data.model_name) == (
        "apache-2.0",
        "image-classification",
        "test_vmamba",
    )
    assert [(r.metric_name, r.metric_value) for r in card.data.eval_results] == [("top-1 %", 87.5)]
    params = sum(p.numel() for p in model.network.parameters())
    assert f"| parameters | {params / 1e6:.2f} M |" in card.text
    flops = ganglion.analysis.complexity.complexity(model.network, 40).flops
    assert f"| FLOPs | {flops / 1e9:.3g} G " in card.text
    for said in (
        "`ant`, `bee`, `crab`",
        "seed 3",
        "90 training images, 2 epochs",
        'data.root: "ants"',
        "0.01",
    ):
        assert said in card.text, said
    assert model_card(model) == model_card(model)


def test_a_licence_that_nobody_stated(model):
    card = ModelCard(model_card(model))
    assert card.data.license is None and "not stated" in card.text


@pytest.mark.parametrize("name, licence", [("vmamba_tiny_s1l8", "mit"), ("sparx_mamba_tiny", "other")])
def test_published_weights(name, licence):
    network = timm.create_model(name)
    published = ganglion.LoadedModel(
        name=name,
        network=network,
        data_config={"input_size": (3, 224, 224)},
        class_names=None,
        description=f"{name}, 1000 classes, from its published weights",
        task=find_task("classification"),
    )
    card = ModelCard(model_card(published))
    assert card.data.license == licence == network.pretrained_cfg["license"]
    assert (card.data.license_name is None) == (licence == "mit")
    (result,) = card.data.eval_results
    assert result.dataset_type == "imagenet-1k" and 82 < result.metric_value < 84
    assert "not measured here" in card.text
    with pytest.raises(CardError, match="nothing is known of its accuracy"):
        model_card(dataclasses.replace(published, description="untrained (seed 0)"))


def test_published_weights_have_a_licence_and_a_size():
    for name in ganglion.list_models():
        cfg = timm.get_pretrained_cfg(name)
        assert bool(cfg.license) == bool(cfg.url), name
        assert len(cfg.input_size) == 3


@pytest.mark.parametrize("measured", [{}, {"val/loss": 0.1}, {"val/top1": float("nan")}])
def test_without_metrics_nothing_is_written(tmp_path, measured):
    with pytest.raises(CardError, match="validation images"):
        write_card(loaded(tmp_path / "model", measured=measured), tmp_path / "README.md")
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_somebodys_own_text_stays(model, tmp_path):
    path = tmp_path / "README.md"
    write_card(model, path)
    write_card(model, path)
    path.write_text("mine")
    with pytest.raises(CardError, match="stays as it is"):
        write_card(model, path)
    assert path.read_text() == "mine"


def test_a_run_writes_one(tmp_path, capsys):
    """With a validation; without, a line says that there is none. Its values are those of the log."""
    for k in range(6):
        picture(tmp_path / "data" / NAMES[k % 3] / f"{k}.png", seed=k)
    options = "--model test_vmamba --trainer.max_epochs 1 --schedule.warmup_epochs 0 --data.batch_size 3 "
    options += f"--data.workers 0 --data.img_size 32 --data {tmp_path / 'data'} --output "
    assert main(["fit", *options.split(), str(tmp_path / "one"), "--data.val_split", "0.5"]) == 0
    card = ModelCard.load(tmp_path / "one" / "model" / "README.md")
    assert "3 training images, 1 epochs, 1 optimizer steps" in card.text and 'data.root: "data"' in card.text
    header, *_, last = (tmp_path / "one" / "log.csv").read_text().splitlines()
    logged = float(dict(zip(header.split(","), last.split(","), strict=True))["val/top1"])
    assert card.data.eval_results[0].metric_value == pytest.approx(logged, abs=1e-3)
    assert str(tmp_path) not in card.text
    assert ganglion.load_model(tmp_path / "one" / "checkpoints" / "best.ckpt").training["measured"]

    capsys.readouterr()
    assert main(["fit", *options.split(), str(tmp_path / "two"), "--data.val_split", "null"]) == 0
    assert re.search(r"^no card of test_vmamba.*: nothing is known", capsys.readouterr().out, re.M)
    assert not (tmp_path / "two" / "model" / "README.md").exists()


def test_beside_a_file(model, tmp_path):
    """The report of the export gives error and speed; without a known accuracy there is none."""
    file = tmp_path / "small.onnx"
    report = {"file": str(file), "format": "onnx", "megabytes": 0.9, "max_relative_error": 4e-7}
    report |= {"milliseconds": 3.25, "eager_milliseconds": 2.5}
    written = _card(file, model, report)
    assert written == str(tmp_path / "small.onnx.md")
    card = ModelCard.load(written)
    assert (
        "| speed | 3.25 ms" in card.text
        and "small.onnx, onnx, 0.9 MB" in card.text
        and "4.0e-07" in card.text
    )
    assert card.data.eval_results[0].metric_value == 87.5 and card.data.library_name == "onnx"
    assert str(tmp_path) not in card.text
    assert _card(file, dataclasses.replace(model, training={}), report) is None
    assert _card(file, model.network, report) is None
