"""Detection through fit, validate and predict; its metrics against pycocotools, its pipeline against numbers."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import ganglion
from ganglion.data import Batch, train_loader
from ganglion.heads import create_detector
from ganglion.heads.weight_names import published_names
from ganglion.tasks import fit
from ganglion.tasks.detection import rle
from ganglion.tasks.detection.data import DetectionData
from ganglion.tasks.detection.metrics import CocoMetrics
from ganglion.tasks.detection.overlay import colour, free_box
from ganglion.tasks.detection.training import Detection
from ganglion.training.optimization import OptimizerConfig, build_optimizer, build_schedule
from ganglion_cli import main

from . import detection_data
from .detection_data import scene
from .runs import Crash, differences, read_last

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return detection_data.write(tmp_path_factory.mktemp("data") / "set")


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    output = tmp_path_factory.mktemp("run") / "whole"
    assert fit.main(detection_data.arguments(data, output)) == 0
    return output


def test_fit_leaves_a_log_and_an_export(trained):
    rows = (trained / "log.csv").read_text().splitlines()
    assert len(rows) == 3
    assert "val/box_ap" in rows[0]
    assert "val/mask_ap" in rows[0]
    config = json.loads((trained / "model" / "config.json").read_text())
    assert config["task"] == "detection"
    assert config["ganglion"]["data_config"]["category_ids"] == list(detection_data.IDS)


@pytest.mark.parametrize(
    "options",
    [{}, {"trainer__precision": "bf16-mixed", "trainer__accumulate_grad_batches": 2, "data__batch_size": 1}],
    ids=["plain", "amp, accumulated"],
)
def test_a_killed_run_resumes_bit_for_bit(options, trained, data, tmp_path, monkeypatch):
    """With an average of the weights and drop path, in the middle of an epoch."""
    if options:
        trained = tmp_path / "whole"
        assert fit.main(detection_data.arguments(data, trained, **options)) == 0
    steps, compute = [], Detection.loss

    def loss(self, batch):
        if len(steps) == 4:
            raise Crash
        steps.append(0)
        return compute(self, batch)

    argv = detection_data.arguments(data, tmp_path / "run", **options)
    monkeypatch.setattr(Detection, "loss", loss)
    with pytest.raises(Crash):
        fit.main(argv)
    monkeypatch.setattr(Detection, "loss", compute)
    assert fit.main(argv) == 0
    there, here = read_last(trained), read_last(tmp_path / "run")
    for part in ("state_dict", "optimizer_states", "current_model_state"):
        assert differences(there[part], here[part]) == []


def test_predict_gives_cocos_format_and_an_overlay(trained, data, tmp_path, capsys):
    model = ganglion.load_model(trained / "model")
    file = data / "val2017" / "0.png"
    (entry,) = list(model.task.prediction.predictions(model, file, threshold=0.0))
    assert entry["predictions"]
    for found in entry["predictions"]:
        assert found["category_id"] in detection_data.IDS
        assert found["segmentation"]["size"] == [61, 45]
        x, y, w, h = found["bbox"]
        assert 0 <= x and x + w <= 45.01 and 0 <= y and y + h <= 61.01
        json.dumps(found)
    drawn = model.task.prediction.draw(Image.open(file), entry)
    assert drawn.size == (45, 61)
    assert np.any(np.asarray(drawn) != np.asarray(Image.open(file)))
    assert main(["predict", "--checkpoint", str(trained / "model"), str(file), "--save", str(tmp_path)]) == 0
    assert (tmp_path / "0.predicted.jpg").is_file()


def test_what_is_said_of_an_image_depends_on_it_alone(trained, data):
    model = ganglion.load_model(trained / "model")
    files = [data / "val2017" / f"{i}.png" for i in range(3)]
    together = list(model.task.prediction.predictions(model, files, threshold=0.0, batch_size=3))
    alone = [next(model.task.prediction.predictions(model, file, threshold=0.0)) for file in files]
    assert together == alone


def test_validate(trained, data, capsys):
    argv = ["validate", "--checkpoint", str(trained / "model"), "--data", str(data), "--split", "val2017"]
    assert main([*argv, "--json", "--workers", "0"]) == 0
    (record,) = json.loads(capsys.readouterr().out)["results"]
    assert record["images"] == 3
    assert "box_ap" in record


def test_a_loss_that_is_not_finite_ends_the_run(data, tmp_path, capsys):
    argv = detection_data.arguments(data, tmp_path / "run", optimizer__lr=1e30, trainer__max_epochs=3)
    assert fit.main(argv) == 1
    assert "loss is" in capsys.readouterr().err


# The metrics


def measured(outputs, targets, batch: int) -> CocoMetrics:
    metrics = CocoMetrics(["a", "b", "c"])
    for i in range(0, len(outputs), batch):
        metrics.update(outputs[i : i + batch], Batch(torch.empty(0), targets[i : i + batch], []))
    return metrics


def test_average_precision_is_pycocotools():
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    outputs, targets = scene(0)
    found = measured(outputs, targets, 2).values()
    images = [{"id": t["image_id"], "height": 128, "width": 128} for t in targets]
    objects = [
        a | {"id": i + 1, "image_id": key, "category_id": a["label"] + 1}
        for i, (key, a) in enumerate((t["image_id"], a) for t in targets for a in t["annotations"])
    ]
    results = []
    for output, target in zip(outputs, targets, strict=True):
        for box, score, label, mask in zip(
            *(output[k] for k in ("boxes", "scores", "labels", "masks")), strict=True
        ):
            x0, y0, x1, y1 = box.tolist()
            results.append(
                {
                    "image_id": target["image_id"],
                    "category_id": int(label) + 1,
                    "score": float(score),
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "segmentation": rle.encode(mask.numpy()),
                }
            )
    with contextlib.redirect_stdout(io.StringIO()):
        truth: Any = COCO()
        truth.dataset = {
            "images": images,
            "annotations": objects,
            "categories": [{"id": i + 1} for i in range(3)],
        }
        truth.createIndex()
        for kind, name, left in (("bbox", "box", "segmentation"), ("segm", "mask", "bbox")):
            kept = [{k: v for k, v in r.items() if k != left} for r in results]
            evaluation: Any = COCOeval
            oracle = evaluation(truth, truth.loadRes(kept), kind)
            oracle.evaluate()
            oracle.accumulate()
            oracle.summarize()
            for i, key in enumerate(
                ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar1", "ar10", "ar100")
            ):
                value = oracle.stats[i]
                expected = 100 * value if value >= 0 else value
                assert found[f"{name}_{key}"] == pytest.approx(expected, abs=1e-6), (name, key)
    assert 5 < found["box_ap"] < 95


def test_order_and_batches_do_not_matter():
    outputs, targets = scene(1)
    once = measured(outputs, targets, 5)
    again = measured(outputs[::-1], targets[::-1], 1)
    assert once.values() == again.values()
    assert once.per_class("mask") == again.per_class("mask")
    assert len(once.per_class()) == 3
    assert once.missed() and once.missed() == again.missed()


def test_no_detection_is_a_precision_of_zero_and_no_image_is_nan():
    outputs, targets = scene(2)
    nothing = [{key: value[:0] for key, value in output.items()} for output in outputs]
    assert measured(nothing, targets, 2).values()["box_ap"] == 0
    assert np.isnan(CocoMetrics().values()["mask_ap"])


# The pipeline


def test_batches_are_grouped_by_orientation(data):
    """Of two upright images and two others a batch has one kind (published: w > h or not)."""

    def orientations(**options) -> list[set[bool]]:
        made = DetectionData(str(data), batch_size=2, workers=0, long_side=64, short_side=48, **options)
        trainer: Any = SimpleNamespace(
            lightning_module=SimpleNamespace(in_chans=3), global_rank=0, world_size=1, current_epoch=0
        )
        made.trainer = trainer
        loader = train_loader(
            made.source("train"), made.transform("train"), batch_size=2, seed=1, collate=made.collate,
            groups=made.groups(),
        )  # fmt: skip
        return [{image.shape[2] > image.shape[1] for image in batch.images} for batch in loader]

    found = orientations()
    assert sorted(map(len, found)) == [1, 1, 2]  # three of each kind: one pair is left over
    assert DetectionData(str(data), group_by_orientation=False).groups() is None


# The rest


def test_labels_do_not_collide_and_colours_stay():
    taken: list = []
    for _ in range(6):
        box = free_box([10, 40, 100, 120], (60, 15), (200, 200), taken)
        assert box is not None
        assert not any(box[0] < t[2] and t[0] < box[2] and box[1] < t[3] and t[1] < box[3] for t in taken)
        taken.append(box)
    assert len({colour(i) for i in range(80)}) == 80


def test_decay_by_mmdets_names():
    network = create_detector("mask_rcnn", "test_vmamba", num_classes=2, channels=8, box_channels=8)
    optimizer = build_optimizer(network, OptimizerConfig(decay="mmdet", weight_decay=0.05), lr=1e-4)
    names = {id(p): name for name, p in network.named_parameters()}
    decay = {names[id(p)]: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decay.keys() == set(names.values())
    published = published_names(network)
    for name, value in decay.items():
        assert value == (0 if "norm" in published[name] else 0.05), name
    assert decay["box_head.fc6.bias"] == 0.05
    stem = [name for name in decay if published[name].startswith("backbone.patch_embed.2")]
    assert stem and all(decay[name] == 0.05 for name in stem)


RECIPES = Path(__file__).parents[2] / "recipes" / "detection"


def test_every_recipe_is_whole():
    """It is read, names its own folder and, in its head, the command that runs it; the papers' numbers are in it."""
    found = {}
    for path in sorted(RECIPES.glob("*.yaml")):
        options = ["--trainer.devices=1", "--trainer.accelerator=cpu", "--trainer.sync_batchnorm=false"]
        cli = fit.FitCLI(Detection, DetectionData, ["--config", str(path), *options])
        assert cli.config["output"] == f"outputs/detection/{path.stem}"
        assert f"ganglion fit --config recipes/detection/{path.name} " in path.read_text()
        found[path.stem] = cli
    assert (
        len([name for name in found if "_1x_" in name])
        == len([name for name in found if "_3x_" in name])
        == 11
    )
    for name, epochs, milestones, scales in (("1x", 12, (8, 11), "one"), ("3x", 36, (27, 33), "detr")):
        cli = found[f"mask_rcnn_{name}_vmamba_tiny_s1l8"]
        assert cli.trainer.max_epochs == epochs
        assert tuple(cli.model.schedule.decay_milestones) == milestones
        assert cli.data.augmentation.scales == scales
        assert (cli.model.optimizer.lr, cli.model.optimizer.decay) == (1e-4, "mmdet")
        assert cli.data.sides == (800, 1333)


def test_the_published_learning_rate_over_the_run():
    cli = fit.FitCLI(
        Detection,
        DetectionData,
        ["--config", str(RECIPES / "mask_rcnn_1x_vmamba_tiny_s1l8.yaml"), "--trainer.devices=1"],
    )
    steps = 7329
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-4)
    schedule = build_schedule(optimizer, cli.model.schedule, epochs=12, updates_per_epoch=steps)
    for step, lr in ((0, 1e-7), (1000, 1e-4), (8 * steps - 1, 1e-4), (8 * steps, 1e-5), (11 * steps, 1e-6)):
        schedule.step_update(step)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(lr, rel=1e-3), step
