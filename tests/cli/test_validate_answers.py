"""What `ganglion validate` says of single classes and images, and of what cannot be measured."""

from __future__ import annotations

import csv
import json
import re

import pytest
import torch

from ganglion_cli import main
from tests.cli.networks import NAMES, export, network, picture, preprocess
from tests.data.pictures import write_shards

from . import test_validate
from .test_validate import OPTIONS, by_folder, by_hand, check, error, validate

model, data = test_validate.model, test_validate.data


def answers(data) -> list[tuple[str, str]]:
    """Label and prediction of every image, by hand."""
    with torch.no_grad():
        return [
            (file.parent.name, NAMES[int(network()(preprocess(file)).argmax())])
            for file in sorted(data.rglob("*.png"))
        ]


def test_worst_classes_and_most_confused_pairs(capsys, model, data):
    pairs = answers(data)
    argv = ("--checkpoint", model, "--data", data)
    report = json.loads(validate(capsys, *argv, "--json"))
    wrong = {pair: pairs.count(pair) for pair in pairs if pair[0] != pair[1]}
    assert len(wrong) > 1
    assert {(p["target"], p["predicted"]): p["count"] for p in report["most_confused"]} == wrong
    for entry in report["worst_classes"]:
        of_class = [p for t, p in pairs if t == entry["name"]]
        assert (entry["images"], entry["top1"]) == (
            len(of_class),
            100 * of_class.count(entry["name"]) / len(of_class),
        )
    out = validate(capsys, *argv)
    (target, predicted), count = max(wrong.items(), key=lambda pair: pair[1])
    assert re.search(rf"most confused +images\n  {target} -> {predicted} +{count} of \d", out)
    assert re.search(r"worst classes +images +top-1 % +most often taken for\n", out)


def test_tables_of_classes_and_images_and_the_picture(capsys, model, data, tmp_path):
    pairs = answers(data)
    (data / "validation" / "bee" / "5.png").write_bytes(b"")
    argv = ("--checkpoint", model, "--data", data, "--per-class", tmp_path / "k.csv")
    argv = (*argv, "--predictions", tmp_path / "p.csv", "--plot", tmp_path / "c.png", "--json")
    validate(capsys, *argv)
    pairs.pop(7 + 5)  # the unreadable bee
    rows = list(csv.DictReader((tmp_path / "p.csv").open()))
    assert [(row["target"], row["predicted"]) for row in rows] == pairs
    assert [int(row["correct"]) for row in rows] == [int(t == p) for t, p in pairs]
    assert "bee/5.png" not in {row["image"] for row in rows} and rows[-1]["image"] == "crab/2.png"
    assert all(0 <= float(row["target_probability"]) <= float(row["probability"]) <= 1 for row in rows)
    for row in csv.DictReader((tmp_path / "k.csv").open()):
        of_class = [p for t, p in pairs if t == row["name"]]
        assert int(row["images"]) == len(of_class) and int(row["correct"]) == of_class.count(row["name"])
        assert int(row["predicted"]) == sum(p == row["name"] for _, p in pairs)
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("option", ["--output", "--per-class", "--predictions", "--plot"])
def test_no_file_is_written_over(capsys, model, data, tmp_path, option):
    target = tmp_path / ("mine.png" if option == "--plot" else "mine.csv")
    target.write_text("mine")
    argv = ("--checkpoint", model, "--data", data, option, target)
    assert f"{option} {target}: it is there already" in error(capsys, *argv)
    assert target.read_text() == "mine"
    validate(capsys, *argv, "--overwrite")
    assert target.read_bytes() != b"mine"
    assert not list(tmp_path.glob(".*")), "no temporary file is left"


def test_one_split_as_the_folder(capsys, model, data):
    """`--data DIR/validation` is what `--data DIR` is."""
    whole, split = (
        json.loads(validate(capsys, "--checkpoint", model, "--data", folder, "--json"))["results"][0]
        for folder in (data, data / "validation")
    )
    assert split["images"] == 16 and split["loss"] == whole["loss"]
    (data / "validation").rename(data / "train")
    assert "unknown split 'validation'" in error(capsys, "--checkpoint", model, "--data", data)


def test_a_flat_folder_with_a_file_of_labels(capsys, model, data, tmp_path):
    rows = []
    for file in sorted(data.rglob("*.png")):
        flat = tmp_path / "flat" / f"{file.parent.name}_{file.name}"
        flat.parent.mkdir(exist_ok=True)
        flat.write_bytes(file.read_bytes())
        rows.append(f"{flat.name},{file.parent.name}")
    (tmp_path / "labels.csv").write_text("image,class\n" + "\n".join(rows))
    argv = ("--checkpoint", model, "--data", tmp_path / "flat")
    report = json.loads(validate(capsys, *argv, "--labels", tmp_path / "labels.csv", "--json"))
    check(report["results"][0], by_hand(sorted(data.rglob("*.png")), by_folder))
    said = error(capsys, *argv)
    assert "(--labels)" in said and "data." not in said


def test_output_that_is_not_finite(capsys, model, data, monkeypatch):
    """Counted as wrong, said, exit status 1; and JSON has no NaN."""
    from ganglion.tasks import evaluation

    def spoilt(network, images):
        logits = network(images)
        logits[0] = float("nan")
        return logits

    monkeypatch.setattr(evaluation, "compute", spoilt)
    argv = ["validate", *OPTIONS, "--checkpoint", model, "--data", str(data)]
    assert main([*argv, "--json"]) == 1
    captured = capsys.readouterr()
    report = json.loads(captured.out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert report["results"][0]["not_finite"] == 4 and report["results"][0]["loss"] is None
    assert report["results"][0]["images"] == 16 and report["results"][0]["top1"] <= 75
    assert "not finite (NaN or infinite) for 4 of 16 images" in captured.err
    assert main(argv) == 1


def test_weights_that_are_not_finite_are_refused(capsys, data, tmp_path):
    bad = network()
    with torch.no_grad():
        bad.head.fc.bias[0] = float("nan")
    made = export(tmp_path / "bad", made=bad)
    with pytest.raises(SystemExit) as stop:
        main(["validate", *OPTIONS, "--checkpoint", str(made), "--data", str(data), "--json"])
    captured = capsys.readouterr()
    assert stop.value.code == 1 and "head.fc.bias is not finite" in json.loads(captured.out)["error"]


def test_a_worker_that_is_killed(capsys, model, data, monkeypatch):
    from ganglion.tasks import evaluation

    def killed(*args):
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.\nmore")

    monkeypatch.setattr(evaluation, "compute", killed)
    said = error(capsys, "--checkpoint", model, "--data", data)
    assert "DataLoader worker (pid 7) is killed by signal: Killed.: out of memory, perhaps" in said


def test_streams_name_no_images(capsys, model, tmp_path):
    content = picture(tmp_path / "a.png", seed=1).read_bytes()
    write_shards(tmp_path / "shards", {"val": [[content] * 3]})
    argv = ("--checkpoint", model, "--data", tmp_path / "shards", "--data-name", "wds/", "--split", "val")
    assert "--predictions names each image" in error(capsys, *argv, "--predictions", tmp_path / "p.csv")
