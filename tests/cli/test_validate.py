"""`ganglion validate`, run in this process."""

from __future__ import annotations

import csv
import json
import re

import pytest
import torch
import torch.nn.functional as F

from ganglion.analysis.complexity import complexity
from ganglion.data import Batch
from ganglion.tasks.classification.metrics import Counts
from ganglion_cli import common, main
from ganglion_cli.common import ProgressLine
from tests.cli.networks import CROP_PCT, NAMES, SIZE, export, network, picture, preprocess
from tests.real_data import real_data

OPTIONS = ("--workers", "0", "--batch-size", "4")


@pytest.fixture
def model(tmp_path):
    return str(export(tmp_path / "model"))


@pytest.fixture
def data(tmp_path):
    """Seven pictures of ants, six of bees, three of crabs."""
    for label, (name, count) in enumerate(zip(NAMES, (7, 6, 3), strict=True)):
        for i in range(count):
            picture(tmp_path / "images" / "validation" / name / f"{i}.png", seed=100 * label + i)
    return tmp_path / "images"


def validate(capsys, *argv) -> str:
    assert main(["validate", *OPTIONS, *map(str, argv)]) == 0
    return capsys.readouterr().out


def error(capsys, *argv) -> str:
    with pytest.raises(SystemExit) as stop:
        main(["validate", *OPTIONS, *map(str, argv)])
    said = capsys.readouterr().err
    assert stop.value.code == (2 if "--help)" in said else 1)
    return said


def by_hand(files, label_of, made=None, size=SIZE, crop_pct=CROP_PCT) -> tuple[float, float, float]:
    """Top-1, top-5 and loss, one file after the other."""
    made = made or network()
    top1 = top5 = 0
    loss = 0.0
    for file in files:
        with torch.no_grad():
            logits = made(preprocess(file, size, crop_pct))[0]
        label = label_of(file)
        top1 += int(logits.argmax()) == label
        top5 += label in logits.argsort(descending=True)[:5].tolist()
        loss += F.cross_entropy(logits.double()[None], torch.tensor([label])).item()
    return 100 * top1 / len(files), 100 * top5 / len(files), loss / len(files)


def check(record, expected) -> None:
    assert (record["top1"], record["top5"]) == expected[:2]
    assert record["loss"] == pytest.approx(expected[2], rel=1e-3)


def by_folder(file) -> int:
    return NAMES.index(file.parent.name)


def test_numbers_of_a_loop_written_by_hand(capsys, model, data):
    report = json.loads(validate(capsys, "--checkpoint", model, "--data", data, "--json"))
    files = sorted(data.rglob("*.png"))
    (record,) = report["results"]
    check(record, by_hand(files, by_folder))
    assert 0 < record["top1"] < record["top5"] == 100
    assert (record["images"], record["skipped"], record["size"]) == (16, 0, f"{SIZE} x {SIZE}")
    assert record["images_per_second"] > 0
    assert (report["model"], report["crop_pct"], report["unreadable"]) == ("test_vmamba", CROP_PCT, [])


def test_a_published_file_on_real_pictures(capsys, tmp_path):
    """Sixteen classes of ImageNet, which the network has at other places among its thousand."""
    folder = real_data("imagenet_mini")
    manifest = json.loads((folder / "manifest.json").read_text())
    place = {entry["wnid"]: entry["ilsvrc2012_index"] for entry in manifest["classes"]}
    made = export(tmp_path / "model", names=None, made=network(1000))
    report = json.loads(validate(capsys, "--checkpoint", made, "--data", folder, "--split", "val", "--json"))
    files = sorted((folder / "val").rglob("*.jpg"))
    check(report["results"][0], by_hand(files, lambda file: place[file.parent.name], network(1000)))
    assert report["results"][0]["images"] == len(files) == 32


def test_classes_are_matched_by_name(capsys, data, tmp_path):
    made = export(tmp_path / "model", names=["crab", "dodo", "ant", "bee"])
    report = json.loads(validate(capsys, "--checkpoint", made, "--data", data, "--json"))
    place = {"crab": 0, "ant": 2, "bee": 3}
    files = sorted(data.rglob("*.png"))
    check(report["results"][0], by_hand(files, lambda file: place[file.parent.name], network(4)))


def test_classes_that_do_not_fit(capsys, data, tmp_path):
    made = export(tmp_path / "two", names=["ant", "bee"])
    assert "3 classes" in error(capsys, "--checkpoint", made, "--data", data)
    made = export(tmp_path / "other", names=["ant", "bee", "dodo"])
    message = error(capsys, "--checkpoint", made, "--data", data)
    assert "the network does not know 1 of the 3 classes of the data: crab" in message


def test_classes_of_other_names_are_refused_unless_labels_are_said_to_be_numbers(capsys, data, tmp_path):
    made = export(tmp_path / "model", names=["Ameise", "Biene", "Krabbe"])
    argv = ("--checkpoint", made, "--data", data, "--json")
    assert main(["validate", *OPTIONS, *map(str, argv), "--by-number"]) == 0
    check(json.loads(capsys.readouterr().out)["results"][0], by_hand(sorted(data.rglob("*.png")), by_folder))
    with pytest.raises(SystemExit) as stop:
        main(["validate", *OPTIONS, *map(str, argv)])
    captured = capsys.readouterr()
    assert stop.value.code == 1
    for stream in (captured.err, json.loads(captured.out)["error"]):
        assert "class 0 is 'ant' there and 'Ameise' here" in stream and "--by-number" in stream


def test_what_names_no_classes_is_matched_by_number_and_that_is_said(capsys, data, tmp_path):
    made = export(tmp_path / "model", names=None)
    assert main(["validate", *OPTIONS, "--checkpoint", str(made), "--data", str(data), "--json"]) == 0
    captured = capsys.readouterr()
    check(json.loads(captured.out)["results"][0], by_hand(sorted(data.rglob("*.png")), by_folder))
    assert "warning: the network names no classes" in captured.err


def test_text_for_people(capsys, model, data):
    out = validate(capsys, "--checkpoint", model, "--data", data)
    top1, top5, loss = by_hand(sorted(data.rglob("*.png")), by_folder)
    assert f"top-1      {top1:.2f} %\n  top-5      {top5:.2f} %\n" in out
    assert float(re.search(r"loss +([\d.]+)", out)[1]) == pytest.approx(loss, rel=1e-3)
    assert "16 images of" in out and "  images     16\n" in out and "not counted" not in out


def test_unreadable_images_are_not_counted_but_listed(capsys, model, data):
    (data / "validation" / "ant" / "0.png").write_bytes(b"")
    whole = (data / "validation" / "bee" / "5.png").read_bytes()
    (data / "validation" / "bee" / "5.png").write_bytes(whole[: len(whole) // 2])
    files = [file for file in sorted(data.rglob("*.png")) if str(file)[-9:] not in ("ant/0.png", "bee/5.png")]
    report = json.loads(validate(capsys, "--checkpoint", model, "--data", data, "--json"))
    check(report["results"][0], by_hand(files, by_folder))
    assert (report["results"][0]["images"], report["results"][0]["skipped"]) == (14, 2)
    assert [entry["name"][-9:] for entry in report["unreadable"]] == ["ant/0.png", "bee/5.png"]
    out = validate(capsys, "--checkpoint", model, "--data", data)
    assert "  images     14, 2 skipped\n" in out
    assert "2 images could not be read, and are not counted" in out
    assert re.search(r"ant/0\.png: \w", out) and re.search(r"bee/5\.png: \w", out)


def test_sizes(capsys, model, data, tmp_path):
    files = ("--output", tmp_path / "sizes.csv", "--plot", tmp_path / "sizes.png")
    argv = ("--checkpoint", model, "--data", data, "--sizes", "32, 48", "--crop-pct", "0.9", *files)
    report = json.loads(validate(capsys, *argv, "--json"))
    pictures = sorted(data.rglob("*.png"))
    assert [record["size"] for record in report["results"]] == [32, 48]
    for record in report["results"]:
        check(record, by_hand(pictures, by_folder, size=record["size"], crop_pct=0.9))
        assert record["flops"] == complexity(network(), record["size"]).flops
    rows = list(csv.DictReader((tmp_path / "sizes.csv").open()))
    assert [(int(row["size"]), float(row["top1"]), float(row["loss"])) for row in rows] == [
        (record["size"], record["top1"], record["loss"]) for record in report["results"]
    ]
    assert (tmp_path / "sizes.png").read_bytes().startswith(b"\x89PNG")

    lines = validate(capsys, *argv, "--overwrite").splitlines()[3:]
    assert lines[0].split() == [
        "size",
        "top-1",
        "%",
        "top-5",
        "%",
        "loss",
        "images/s",
        "FLOPs",
        "G",
        "paper",
        "G",
    ]
    for line, record in zip(lines[1:], report["results"], strict=True):
        size, top1, top5, loss, _, flops, paper = line.split()
        assert (int(size), top1, top5) == (record["size"], f"{record['top1']:.2f}", f"{record['top5']:.2f}")
        assert (loss, flops, paper) == (f"{record['loss']:.4f}", f"{record['flops'] / 1e9:.4f}", "-")
        assert len(line) == len(lines[0])


def test_one_other_size(capsys, model, data, tmp_path):
    argv = (
        "--checkpoint",
        model,
        "--data",
        data,
        "--img-size",
        56,
        "--output",
        tmp_path / "one.csv",
        "--json",
    )
    report = json.loads(validate(capsys, *argv))
    check(report["results"][0], by_hand(sorted(data.rglob("*.png")), by_folder, size=56))
    (row,) = csv.DictReader((tmp_path / "one.csv").open())
    assert int(row["size"]) == 56 and float(row["top1"]) == report["results"][0]["top1"]


def test_mixed_precision_workers_and_memory_format(capsys, model, data):
    argv = ("--checkpoint", model, "--data", data, "--json")
    plain = json.loads(validate(capsys, *argv))["results"][0]
    for options in (("--amp", "bf16"), ("--channels-last",), ("--workers", 1)):
        record = json.loads(validate(capsys, *argv, *options))["results"][0]
        assert record["images"] == 16 and record["loss"] == pytest.approx(plain["loss"], rel=0.05)
        assert (record["loss"] == pytest.approx(plain["loss"], rel=1e-5)) == ("--amp" not in options)


def test_bad_arguments(capsys, model, data, tmp_path):
    of = ("--checkpoint", model, "--data", data)
    for argv, message in [
        (("--data", data), "expected --checkpoint, --model or both"),
        (("--checkpoint", model), "required: --data"),
        ((*of, "--sizes", "32,64", "--img-size", 32), "expected --img-size or --sizes, not both"),
        ((*of, "--sizes", "32,x"), "'x': expected a whole number"),
        ((*of, "--crop-pct", "1.5"), "'1.5': expected a number above 0 and up to 1"),
        ((*of, "--sizes", "32", "--per-class", "a.csv"), "--per-class is of one image size"),
        ((*of, "--by-number", "--class-map", "a.txt"), "expected --class-map or --by-number, not both"),
        ((*of, "--plot", tmp_path / "a.png", "--output", tmp_path / "a.png"), "name the same file"),
        ((*of, "--plot", "a.txt"), "expected a name that ends in .png, .svg or .pdf"),
        ((*of, "--output", tmp_path / "no" / "a.csv"), "cannot write to the folder"),
        ((*of, "--split", "nothing"), "nothing"),
        (("--checkpoint", model, "--data", tmp_path / "nowhere"), "nowhere"),
        (("--checkpoint", model[:-1], "--data", data), "no checkpoint at"),
    ]:
        assert message in error(capsys, *argv), argv


def test_no_readable_picture(capsys, model, data):
    for file in data.rglob("*.png"):
        file.write_bytes(b"no picture")
    assert "read" in error(capsys, "--checkpoint", model, "--data", data)


@pytest.mark.parametrize("terminal", [False, True])
def test_progress(capsys, monkeypatch, terminal):
    """One line that is overwritten on a terminal; elsewhere whole lines, not more than one in 10 seconds."""
    now = 0.0
    monkeypatch.setattr(common.time, "monotonic", lambda: now)
    monkeypatch.setattr(common.sys.stderr, "isatty", lambda: terminal)
    progress = ProgressLine(100, "top1", "size 32: ")
    counts = Counts()
    for _ in range(25):
        now += 1.0
        counts.update(torch.eye(4)[:2], Batch(torch.empty(2, 3, 1, 1), torch.tensor([0, 0]), []))
        progress(counts)
    progress.close()
    shown = capsys.readouterr().err
    if terminal:
        assert "\n" not in shown and shown.count("\r") == 26 and shown.endswith("\r\x1b[K")
        assert "size 32: 50/100 images, top-1 50.00 %, 2.0 images/s, 0:00:25 left" in shown
    else:
        assert "\r" not in shown and "\x1b" not in shown
        assert shown.splitlines() == [
            f"size 32: {done}/100 images, top-1 50.00 %, 2.0 images/s, {left} left"
            for done, left in ((20, "0:00:40"), (40, "0:00:30"))
        ]
