"""A trained detector in `ganglion validate` and `predict`: what they say of classes and images, and write."""

from __future__ import annotations

import csv
import json
import shutil

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import ganglion
from ganglion.analysis.complexity import complexity
from ganglion.analysis.precision_recall import BACKGROUND, detection_confusion, plot_detection
from ganglion.data import Batch
from ganglion.heads import create_detector, detect_multi_scale
from ganglion.tasks import fit
from ganglion.tasks.detection.metrics import CocoMetrics, match
from ganglion_cli import main

from . import detection_data

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:ganglion. scan2d runs on the slower backend"),  # in float64
]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return detection_data.write(tmp_path_factory.mktemp("data") / "set")


@pytest.fixture(scope="module")
def model(data, tmp_path_factory):
    output = tmp_path_factory.mktemp("run") / "whole"
    assert fit.main(detection_data.arguments(data, output, trainer__max_epochs=1)) == 0
    return output / "model"


def validate(model, data, *more: str) -> int:
    argv = [
        "validate",
        "--checkpoint",
        str(model),
        "--data",
        str(data),
        "--split",
        "val2017",
        "--workers",
        "0",
    ]
    return main([*argv, *more])


def test_validate_writes_all_it_is_asked_for(model, data, tmp_path, capsys):
    files = {
        "--per-class": "classes.csv",
        "--predictions": "results.json",
        "--plot": "curves.png",
        "--worst": "missed",
    }
    argv = [word for option, name in files.items() for word in (option, str(tmp_path / name))]
    assert validate(model, data, *argv) == 0
    out = capsys.readouterr().out
    assert "worst classes" in out and "most missed" in out
    with open(tmp_path / "classes.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["name"], row["objects"]) for row in rows] == [("red", "3"), ("green", "3")]
    assert {"box_AP", "box_AP50", "box_AR", "mask_AP"} <= rows[0].keys()
    results = json.loads((tmp_path / "results.json").read_text())
    assert {r["category_id"] for r in results} <= set(detection_data.IDS)
    assert {r["image_id"] for r in results} <= {0, 7, 14}
    assert Image.open(tmp_path / "curves.png").width > 500
    pictures = sorted((tmp_path / "missed").iterdir())
    assert pictures[0].name.startswith("01_")
    assert Image.open(pictures[0]).size in ((64, 48), (45, 61))
    # Nothing is written over.
    with pytest.raises(SystemExit) as stop:
        validate(model, data, "--worst", str(tmp_path / "missed"))
    assert stop.value.code == 2
    assert "holds files already" in capsys.readouterr().err


def test_results_are_those_that_were_measured(model, data, tmp_path, capsys):
    """COCO's own tool finds the same precision in the file."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    assert validate(model, data, "--json", "--predictions", str(tmp_path / "r.json")) == 0
    report = json.loads(capsys.readouterr().out)
    truth = COCO(str(data / "annotations" / "instances_val2017.json"))
    oracle = COCOeval(truth, truth.loadRes(str(tmp_path / "r.json")), "segm")
    oracle.evaluate()
    oracle.accumulate()
    oracle.summarize()
    assert report["results"][0]["mask_ap"] == pytest.approx(100 * oracle.stats[0], abs=1e-4)
    assert [c["name"] for c in report["classes"]] == ["red", "green"]


def test_several_scales_and_mirrored(model, data, capsys):
    assert validate(model, data, "--tta", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["tta"] == "at scales 0.5, 1, 1.5 and mirrored"
    assert report["results"][0]["images"] == 3
    assert validate(model, data, "--sizes", "32,48", "--json") == 0
    flops = [row["flops"] for row in json.loads(capsys.readouterr().out)["results"]]
    assert flops[0] < flops[1]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--predictions", "r.csv"], "ends in .json"),
        (["--plot", "curves.jpg"], "ends in .png, .svg or .pdf"),
        (["--sizes", "32,48", "--tta"], "--tta is of one image size"),
    ],
)
def test_options_that_do_not_fit(model, data, argv, said, capsys):
    with pytest.raises(SystemExit) as stop:
        validate(model, data, *argv)
    assert stop.value.code == 2
    assert said in capsys.readouterr().err


def test_classes_that_are_not_the_networks(model, data, tmp_path, capsys):
    other = tmp_path / "other"
    shutil.copytree(data, other)
    file = other / "annotations" / "instances_val2017.json"
    file.write_text(file.read_text().replace('"green"', '"blue"'))
    with pytest.raises(SystemExit):
        validate(model, other)
    said = capsys.readouterr().err
    assert all(part in said for part in ("not those of", "'green'", "blue, red", str(file), "--by-number"))
    assert validate(model, other, "--by-number", "--json") == 0


def test_a_dot_is_an_image(model, tmp_path, capsys):
    Image.new("RGB", (1, 1)).save(tmp_path / "dot.png")
    argv = [
        "predict",
        str(tmp_path / "dot.png"),
        "--checkpoint",
        str(model),
        "--threshold",
        "0.0001",
        "--json",
    ]
    assert main(argv) == 0
    (entry,) = json.loads(capsys.readouterr().out)
    assert all(found["segmentation"]["size"] == [1, 1] for found in entry["predictions"])


def test_options_of_detectors_are_refused_for_classifiers(tmp_path, capsys):
    data = tmp_path / "set" / "a"
    data.mkdir(parents=True)
    for i in range(2):
        Image.new("RGB", (40, 40)).save(data / f"{i}.png")
    network = timm.create_model("test_vmamba", num_classes=1)
    torch.save({"state_dict": network.state_dict()}, tmp_path / "weights.pth")
    argv = ["validate", "--model", "test_vmamba", "--checkpoint", str(tmp_path / "weights.pth")]
    for option in (["--worst", str(tmp_path / "w")], ["--tta"]):
        with pytest.raises(SystemExit) as stop:
            main([*argv, "--data", str(data.parent), *option])
        assert stop.value.code in (1, 2)
        assert option[0] in capsys.readouterr().err


def test_predict(model, data, tmp_path, capsys):
    argv = ["predict", str(data / "val2017"), "--checkpoint", str(model)]
    everything = [*argv, "--threshold", "0.0001", "--json", "--results", str(tmp_path / "r.json")]
    assert main(everything) == 0
    report = json.loads(capsys.readouterr().out)
    assert len(report) == 3
    results = json.loads((tmp_path / "r.json").read_text())
    assert len(results) == sum(len(entry["predictions"]) for entry in report) > 0
    assert results[0].keys() == {"image_id", "category_id", "bbox", "score", "segmentation"}
    assert main([*argv, "--threshold", "1", "--json"]) == 0
    assert all(entry["predictions"] == [] for entry in json.loads(capsys.readouterr().out))
    for wrong in (["--top-k", "3"], ["--threshold", "2"], ["--results", str(tmp_path / "r.json")]):
        with pytest.raises(SystemExit):
            main([*argv, *wrong])


def test_predict_from_python(model, data):
    loaded = ganglion.load_model(model)
    file = data / "val2017" / "1.png"
    pixels = np.asarray(Image.open(file))
    (first,) = ganglion.predict(loaded, file, threshold=0.0)
    forms = [Image.open(file), pixels, torch.from_numpy(pixels.copy()).permute(2, 0, 1), file.read_bytes()]
    for entry in ganglion.predict(loaded, forms, threshold=0.0):
        assert [p["bbox"] for p in entry["predictions"]] == [p["bbox"] for p in first["predictions"]]
    bad = data / "annotations" / "instances_val2017.json"
    good, unreadable, again = ganglion.predict(loaded, [file, bad, file], threshold=0.0, batch_size=3)
    assert good["predictions"] == again["predictions"] == first["predictions"]
    assert "predictions" not in unreadable and unreadable["error"]


# Matches, by hand


def entry(x, label, *, score=None, crowd=0, width=10):
    found = {"bbox": [x, 0, width, 10], "label": label}
    return found | ({"iscrowd": crowd} if score is None else {"score": score})


def test_matches():
    objects = [entry(0, 0), entry(20, 1), entry(40, 2), entry(60, 0, crowd=1, width=40)]
    found = [
        entry(1, 0, score=0.6),  # right
        entry(0, 0, score=0.5),  # once more
        entry(21, 2, score=0.9),  # another class
        entry(70, 0, score=0.8),  # in the crowd
        entry(41, 2, score=0.2),  # not sure
    ]
    assert sorted(match(objects, found, 0.3)) == [(-1, 1), (0, 0), (1, 2), (2, -1)]
    assert (2, 4) in match(objects, found, 0.1)
    assert match([], [], 0.3) == []
    # Of two objects at one place a detection is of that of its class, the surest first.
    both = [entry(0, 0), entry(1, 1)]
    assert sorted(match(both, [entry(0, 1, score=0.9), entry(0, 1, score=0.8)], 0.3)) == [(0, 1), (1, 0)]


def metrics() -> CocoMetrics:
    from ganglion.tasks.detection import rle

    polygons = [[x, 0, x + 10, 0, x + 10, 10, x, 10] for x in (0, 20)]
    objects = [
        entry(x, label) | {"area": 100, "segmentation": [p]}
        for x, label, p in zip((0, 20), (0, 1), polygons, strict=True)
    ]
    masks = torch.stack([torch.from_numpy(rle.bitmap([p], 32, 64)).bool() for p in polygons])
    output = {
        "boxes": torch.tensor([[0.0, 0, 10, 10], [20, 0, 30, 10]]),
        "scores": torch.tensor([0.9, 0.8]),
        "labels": torch.tensor([0, 0]),
        "masks": masks,
    }
    made = CocoMetrics(["cat", "dog"])
    made.update(
        [output], Batch(torch.empty(0), [{"image_id": 5, "size": (32, 64), "annotations": objects}], [])
    )
    return made


def test_classes_curves_and_what_is_missed():
    made = metrics()
    # Precision of the cat is 1 at every recall, as its best detection is right; the dog has none.
    assert made.classes("box") == [pytest.approx((100, 100, 100)), pytest.approx((0, 0, 0))]
    assert made.curves("mask").shape == (10, 101)
    assert made.curves("mask") == pytest.approx(0.5)
    assert made.missed() == [(5, [1])]
    assert made.missed(threshold=0.95) == [(5, [0, 1])]
    confusion = detection_confusion(made, ["cat", "dog"])
    assert [(p.target, p.predicted, p.count) for p in confusion.confused(9)] == [("dog", "cat", 1)]
    surer = detection_confusion(made, ["cat", "dog"], 0.85)
    assert [(p.target, p.predicted) for p in surer.confused(9)] == [("dog", BACKGROUND)]


def test_figure():
    figure = plot_detection(
        {"boxes": metrics().curves()}, detection_confusion(metrics(), ["cat", "dog"]), "a $title"
    )
    legend = figure.subfigs[0].axes[0].get_legend()
    assert legend is not None
    assert [t.get_text() for t in legend.get_texts()][-1] == "0.50 to 0.95: 50.0"


# Several scales


@pytest.fixture(scope="module")
def detector():
    torch.manual_seed(0)
    made = create_detector(
        "mask_rcnn", "test_vmamba", num_classes=3, channels=8, box_channels=16, proposals=40
    )
    torch.nn.init.normal_(made.box_predictor.cls_score.weight, std=1.0)
    return made.double().eval()


def test_one_scale_is_the_detector_itself(detector):
    image = torch.randn(3, 50, 70, dtype=torch.float64)
    with torch.no_grad():
        (plain,) = detector([image], [(25, 35)])
        found = detect_multi_scale(detector, [image], (25, 35), mirrored=False)
    assert len(plain["boxes"]) > 5
    for name, value in plain.items():
        assert torch.allclose(found[name].double(), value.double(), atol=1e-9), name


def test_a_mirrored_image_gives_mirrored_objects(detector):
    """Of an image and its mirror image together; widths fill whole cells, so that nothing depends on the side."""
    image = torch.randn(3, 64, 96, dtype=torch.float64)
    with torch.no_grad():
        one = detect_multi_scale(detector, [image], (64, 96))
        other = detect_multi_scale(detector, [image.flip(2)], (64, 96))
    assert len(one["boxes"]) > 5
    turned = other["boxes"][:, [2, 1, 0, 3]] * torch.tensor([-1.0, 1, -1, 1]) + torch.tensor([96.0, 0, 96, 0])
    assert torch.allclose(one["boxes"], turned, atol=1e-6)
    assert torch.allclose(one["scores"], other["scores"], atol=1e-9)
    assert (one["masks"] != other["masks"].flip(2)).float().mean() < 1e-3
    with pytest.raises(ValueError, match="no scale"):
        detect_multi_scale(detector, [], (64, 96))


def test_a_detector_is_counted_by_its_fixed_shapes(detector):
    assert complexity(detector, (64, 96)).flops < complexity(detector, (128, 96)).flops
