"""A segmentor trained, killed and resumed, validated and used."""

from __future__ import annotations

import csv
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import ganglion
from ganglion.data import Batch
from ganglion.heads import slide
from ganglion.tasks import fit
from ganglion.tasks.detection import rle
from ganglion.tasks.segmentation.metrics import WorstImages
from ganglion.tasks.segmentation.prediction import draw, label_map
from ganglion.tasks.segmentation.training import Segmentation
from ganglion_cli import main

from . import segmentation_data
from .runs import Crash, differences, read_last
from .segmentation_data import NAMES, arguments

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return segmentation_data.whole(tmp_path_factory.mktemp("data") / "set")


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    run = tmp_path_factory.mktemp("run") / "whole"
    assert fit.main(arguments(data, run)) == 0
    return run


@pytest.fixture(scope="module")
def model(trained):
    return trained / "model"


def test_fit_leaves_a_log_and_an_export(trained, model):
    assert read_last(trained)["ganglion"]["task"] == "segmentation"
    assert "val/miou" in (trained / "log.csv").read_text().splitlines()[0]
    loaded = ganglion.load_model(model)
    assert loaded.class_names == NAMES and loaded.data_config["input_size"] == [3, 48, 64]


@pytest.mark.parametrize(
    "options",
    [
        (),
        (
            "--trainer.precision",
            "bf16-mixed",
            "--trainer.accumulate_grad_batches",
            "2",
            "--data.batch_size",
            "1",
        ),
    ],
    ids=["plain", "amp, accumulated"],
)
def test_a_killed_run_resumes_bit_for_bit(options, trained, data, tmp_path, monkeypatch):
    """With an average of the weights and drop path, in the middle of an epoch."""
    if options:
        trained = tmp_path / "whole"
        assert fit.main(arguments(data, trained, *options)) == 0
    steps, compute = [], Segmentation.loss

    def loss(self, batch):
        if len(steps) == 4:
            raise Crash
        steps.append(0)
        return compute(self, batch)

    argv = arguments(data, tmp_path / "run", *options)
    monkeypatch.setattr(Segmentation, "loss", loss)
    with pytest.raises(Crash):
        fit.main(argv)
    monkeypatch.setattr(Segmentation, "loss", compute)
    assert fit.main(argv) == 0
    there, here = read_last(trained), read_last(tmp_path / "run")
    for part in ("state_dict", "optimizer_states", "current_model_state"):
        assert differences(there[part], here[part]) == []


def test_a_loss_that_is_not_finite_ends_the_run(data, tmp_path, capsys):
    assert (
        fit.main(arguments(data, tmp_path / "run", "--optimizer.lr", "1e30", "--trainer.max_epochs", "3"))
        == 1
    )
    assert "loss is" in capsys.readouterr().err


def validate(model, data, *more: str) -> int:
    return main(["validate", "--checkpoint", str(model), "--data", str(data), "--workers", "0", *more])


def test_validate_writes_all_it_is_asked_for(model, data, tmp_path, capsys):
    files = {
        "--per-class": "c.csv",
        "--predictions": "maps.json",
        "--plot": "confusion.png",
        "--worst": "worst",
    }
    argv = [word for option, name in files.items() for word in (option, str(tmp_path / name))]
    assert validate(model, data, *argv) == 0
    out = capsys.readouterr().out
    assert all(part in out for part in ("mIoU", "worst classes", "IoU %", "worst images"))
    with open(tmp_path / "c.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    truth = np.stack([np.asarray(Image.open(data / "masks" / "val" / f"{i}.png")) for i in range(3)])
    assert [(r["name"], int(r["pixels"])) for r in rows] == [
        (name, int((truth == i).sum())) for i, name in enumerate(NAMES)
    ]
    maps = json.loads((tmp_path / "maps.json").read_text())
    predicted = np.stack([label_map(entry) for entry in maps])
    for i, row in enumerate(rows):
        union = ((predicted == i) | (truth == i)).sum()
        expected = 100 * ((predicted == i) & (truth == i)).sum() / union
        assert float(row["iou"]) == pytest.approx(expected, abs=1e-4)
    assert Image.open(tmp_path / "confusion.png").width > 500
    pictures = sorted((tmp_path / "worst").iterdir())
    assert len(pictures) == 3 and pictures[0].name.startswith("01_")
    assert Image.open(pictures[0]).width == 96  # prediction and labels side by side
    with pytest.raises(SystemExit):
        validate(model, data, "--worst", str(tmp_path / "worst"))
    assert "holds files already" in capsys.readouterr().err


def test_validate_in_json_at_several_scales(model, data, capsys):
    assert validate(model, data, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert [c["name"] for c in report["classes"]] == NAMES and len(report["worst_images"]) == 3
    assert validate(model, data, "--tta", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["tta"] == "at scales 0.5, 0.75, 1, 1.25, 1.5, 1.75 and mirrored"
    assert report["results"][0]["images"] == 3
    with pytest.raises(SystemExit):
        validate(model, data, "--predictions", "r.csv")
    assert "ends in .json" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        validate(model, data, "--labels", "labels.csv")
    assert stop.value.code == 2 and "segmentation, which has no --labels" in capsys.readouterr().err


def test_folders_without_splits_and_files_of_classes(model, data, tmp_path, capsys):
    """The network knows its classes; a file of the data's own may have them in another order."""
    flat = tmp_path / "flat"
    for kind in ("images", "masks"):
        shutil.copytree(data / kind / "val", flat / kind)
    expected = results(capsys, model, data)
    assert results(capsys, model, flat) == expected
    for file in (flat / "masks").iterdir():
        Image.fromarray(2 - np.asarray(Image.open(file))).save(file)
    (tmp_path / "other.txt").write_text("car\nroad\nsky\n")
    assert results(capsys, model, flat, "--class-map", str(tmp_path / "other.txt")) == expected
    (flat / "classes.txt").write_text("sky\nroad\nbus\n")
    with pytest.raises(SystemExit):
        validate(model, flat)
    said = capsys.readouterr().err
    assert all(part in said for part in ("car", "bus", "--by-number"))
    assert validate(model, flat, "--by-number") == 0


def results(capsys, *argv) -> list[float]:
    assert validate(*argv, "--json") == 0
    (record,) = json.loads(capsys.readouterr().out)["results"]
    return [record[name] for name in ("miou", "macc", "aacc")]


def test_the_worst_images():
    """By hand: IoU of the second is 0, of the first 1; the third has no label."""
    labels = torch.tensor([[[0, 0]], [[1, 1]], [[255, 255]]])
    logits = torch.tensor([[[[9.0, 9]], [[0, 0]]]] * 3)
    worst = WorstImages(1)
    worst.update(logits[:1], Batch(torch.zeros(1), labels[:1], []))
    worst.update(logits[1:], Batch(torch.zeros(2), labels[1:], []))
    ((value, index, predicted),) = worst.entries
    assert (value, index, predicted.tolist()) == (0.0, 1, [[0, 0]])


def test_predict_and_what_it_writes(model, data, tmp_path, capsys):
    argv = ["predict", str(data / "images" / "val"), "--checkpoint", str(model)]
    files = [
        "--save",
        str(tmp_path / "s"),
        "--label-maps",
        str(tmp_path / "m"),
        "--results",
        str(tmp_path / "r.json"),
    ]
    assert main([*argv, "--json", *files]) == 0
    report = json.loads(capsys.readouterr().out)
    assert len(report) == len(list((tmp_path / "s").iterdir())) == 3
    found = json.loads((tmp_path / "r.json").read_text())
    for i, entry in enumerate(report):
        labels = np.asarray(Image.open(tmp_path / "m" / f"{i}.png"))
        assert labels.dtype == np.uint8 and (labels == label_map(entry)).all()
        assert sum(p["fraction"] for p in entry["predictions"]) == pytest.approx(1)
        for one in (r for r in found if r["image_id"] == entry["file"]):
            assert (rle.decode(one["segmentation"]) == (labels == one["category_id"])).all()
    picture = draw(Image.open(data / "images" / "val" / "0.png"), report[0])
    assert picture.width == 48 and picture.height > 40
    with pytest.raises(SystemExit):
        main([*argv, *files])
    assert "is there already" in capsys.readouterr().err
    for wrong in (["--top-k", "3"], ["--window", "8"], ["--threshold", "0.5"]):
        with pytest.raises(SystemExit) as stop:
            main([*argv, *wrong])
        assert stop.value.code == 2


def test_windows_are_slide_inference_at_full_size(model, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (75, 90, 3), dtype=np.uint8)
    loaded = ganglion.load_model(model)
    (entry,) = ganglion.predict(loaded, pixels, window=48)
    mean, std = (torch.tensor(loaded.data_config[name])[:, None, None] for name in ("mean", "std"))
    image = (torch.from_numpy(pixels).permute(2, 0, 1) / 255 - mean) / std
    with torch.no_grad():
        logits = slide(loaded.network, image[None], crop=(48, 48), stride=(32, 32))
    assert (label_map(entry) == logits[0].argmax(0).numpy()).mean() > 0.999
    with pytest.raises(ValueError, match="window is 8"):
        ganglion.predict(loaded, pixels, window=8)
