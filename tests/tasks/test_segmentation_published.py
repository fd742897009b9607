"""Segmentation against what was published: metric, distortion of colours, weight decay, schedules, recipes."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import timm
import torch

from ganglion.data import Batch
from ganglion.heads import create_segmentor
from ganglion.heads.weight_names import published_names
from ganglion.tasks import fit
from ganglion.tasks.segmentation.metrics import SegmentationMetrics, predicted_labels
from ganglion.tasks.segmentation.training import Segmentation, SegmentationData
from ganglion.tasks.segmentation.transforms import distorted
from ganglion.training.optimization import OptimizerConfig, build_optimizer, build_schedule

from ..golden_data import load

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.mark.parametrize("batches", [1, 3])
def test_metric_is_mmsegmentations(batches):
    """The labels and predictions that the golden file describes, in one batch or one by one."""
    expected = load("dense/upernet").meta["metrics"]
    g = np.random.default_rng([0, 77])
    labels = g.integers(0, 5, (3, 20, 30))
    predicted = np.where(g.random((3, 20, 30)) < 0.6, labels, g.integers(0, 6, (3, 20, 30)))
    labels[:, :4] = 255
    labels[0, 10:, 10:] = 3
    logits = torch.nn.functional.one_hot(torch.from_numpy(predicted), 7).movedim(-1, 1).float()
    metrics = SegmentationMetrics([str(i) for i in range(7)])
    for part in torch.arange(3).chunk(batches):
        metrics.update(logits[part], Batch(torch.zeros(1), torch.from_numpy(labels)[part], []))
    right = metrics.confusion.diagonal()
    assert right.tolist() == expected["intersect"]
    assert metrics.confusion.sum(1).tolist() == expected["label"]
    assert (metrics.confusion.sum(0) + metrics.confusion.sum(1) - right).tolist() == expected["union"]
    for found, name in zip(metrics.per_class(), ("IoU", "Acc"), strict=True):
        wanted = torch.tensor([torch.nan if v is None else v for v in expected[name]])
        torch.testing.assert_close(found.float(), wanted, rtol=1e-6, atol=0, equal_nan=True)
    values = metrics.values()
    for name in ("mIoU", "mAcc", "aAcc"):
        assert values[name.lower()] == pytest.approx(100 * expected[name], rel=1e-6)


def test_classes_after_resizing_are_those_of_all_resized():
    logits = torch.randn(37, 9, 7, generator=torch.Generator().manual_seed(0))
    expected = torch.nn.functional.interpolate(logits[None], (31, 40), mode="bilinear")[0].argmax(0)
    assert torch.equal(predicted_labels(logits, (31, 40)), expected)


class Scripted:
    """In place of `random`: coins by their order, and for each range the place in it."""

    def __init__(self, coins: list[float], where: float):
        self.coins, self.where, self.ranges = coins, where, []

    def random(self) -> float:
        return self.coins.pop(0)

    def uniform(self, low: float, high: float) -> float:
        self.ranges.append((low, high))
        return low + self.where * (high - low)

    def randint(self, low: int, high: int) -> int:
        self.ranges.append((low, high))
        return low + round(self.where * (high - low))


#: Order of the coins: contrast at the end or not, then brightness, contrast, saturation, hue as they come.
NO = 0.9


@pytest.mark.parametrize(
    ("coins", "where", "pixel", "expected", "span"),
    [
        ([NO, 0.1, NO, NO, NO], 1.0, (10, 100, 250), (42, 132, 255), (-32, 32)),  # brightness +32
        ([NO, 0.1, NO, NO, NO], 0.0, (10, 100, 250), (0, 68, 218), (-32, 32)),
        ([NO, NO, 0.1, NO, NO], 1.0, (10, 101, 250), (15, 151, 255), (0.5, 1.5)),  # contrast first, x 1.5
        ([0.1, NO, NO, NO, 0.1], 0.0, (10, 101, 250), (5, 50, 125), (0.5, 1.5)),  # contrast last, x 0.5
        ([NO, NO, NO, 0.1, NO], 0.0, (255, 0, 0), (255, 128, 128), (0.5, 1.5)),  # saturation x 0.5
        ([NO, NO, NO, NO, 0.1], 32 / 35, (255, 0, 0), (255, 119, 0), (-18, 17)),  # hue +14 of 180: 28 degrees
        ([NO, NO, NO, NO, 0.1], 0.0, (255, 0, 0), (255, 0, 153), (-18, 17)),  # hue -18: 324 degrees
    ],
)
def test_distortion_has_the_published_ranges(coins, where, pixel, expected, span, monkeypatch):
    script = Scripted(list(coins), where)
    monkeypatch.setattr("ganglion.tasks.segmentation.transforms.random", script)
    pixels = torch.tensor(pixel, dtype=torch.uint8)[:, None, None].expand(3, 2, 2)
    found = distorted(pixels, 0.5)
    assert found.dtype == torch.uint8 and script.ranges == [span] and script.coins == []
    assert (found[:, 0, 0].int() - torch.tensor(expected)).abs().max() <= 1


def test_each_distortion_has_a_probability_of_a_half():
    random.seed(0)
    pixels = torch.tensor((200, 120, 60), dtype=torch.uint8)[:, None, None].expand(3, 1, 1)
    unchanged = np.mean([torch.equal(distorted(pixels, 0.5), pixels) for _ in range(2000)])
    assert unchanged == pytest.approx(1 / 16, abs=0.025)  # and the few that change nothing
    assert torch.equal(distorted(pixels, 0.0), pixels)


def test_decay_by_mmsegmentations_names():
    """Of names that hold "norm" nothing is decayed; batch norms of the heads, called bn, and biases are."""
    network = create_segmentor("upernet", "test_vmamba", num_classes=2, channels=8, aux_channels=8)
    optimizer = build_optimizer(network, OptimizerConfig(decay="mmdet", weight_decay=0.01), lr=1e-4)
    names = {id(p): name for name, p in network.named_parameters()}
    decay = {names[id(p)]: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decay.keys() == set(names.values())
    published = published_names(network)
    for name, value in decay.items():
        assert value == (0 if "norm" in published[name] else 0.01), name
    assert decay["decode_head.bottleneck.bn.weight"] == decay["decode_head.conv_seg.bias"] == 0.01


RECIPES = Path(__file__).parents[2] / "recipes" / "segmentation"
#: Drop path of every network that the papers print.
NETWORKS = {
    "vmamba_tiny_s1l8": 0.2, "vmamba_tiny_s2l5": 0.2, "vmamba_small_s1l20": 0.3, "vmamba_small_s2l15": 0.3,
    "vmamba_base_s1l20": 0.6, "vmamba_base_s2l15": 0.6, "sparx_mamba_tiny": 0.2, "sparx_mamba_small": 0.4,
    "sparx_mamba_base": 0.5, "sparx_swin_tiny": 0.2, "sparx_swin_base": 0.5,
}  # fmt: skip


def read(name: str) -> fit.FitCLI:
    options = ["--trainer.devices=1", "--trainer.accelerator=cpu", "--trainer.sync_batchnorm=false"]
    argv = ["--config", str(RECIPES / f"{name}.yaml"), *options]
    return fit.FitCLI(Segmentation, SegmentationData, argv)


def test_every_recipe_is_whole():
    """It is read, names its own folder and, in its head, the command that runs it; the papers' numbers are in it."""
    heads = {"upernet_160k": "upernet", "semantic_fpn_80k": "semantic_fpn"}
    there = {path.stem for path in RECIPES.glob("*.yaml")}
    assert there == {"camvid", "finetune", *(f"{head}_{name}" for head in heads for name in NETWORKS)}
    for name in sorted(there):
        cli, text = read(name), (RECIPES / f"{name}.yaml").read_text()
        assert cli.config["output"] == f"outputs/segmentation/{name}"
        assert f"ganglion fit --config recipes/segmentation/{name}.yaml " in text
        assert timm.is_model(cli.model.backbone)
        head = next((head for head in heads if name.startswith(head)), None)
        if head is None:
            continue
        backbone = name.removeprefix(f"{head}_")
        assert (cli.model.name, cli.model.backbone) == (heads[head], backbone)
        assert cli.model.backbone_args["drop_path_rate"] == NETWORKS[backbone]
        assert cli.data.multiple == (32 if "sparx" in backbone else 1)
        assert cli.data.sides == (512, 2048) and cli.data.reduce_zero_label and cli.model.pretrained
        augmentation = cli.data.augmentation
        assert augmentation.crop == 512 and tuple(augmentation.scale) == (0.5, 2.0)
        assert augmentation.hflip == augmentation.distortion == 0.5
        assert cli.trainer.gradient_clip_val is None
    for head in heads:  # whose batch norms are small else
        assert "sync_batchnorm: true" in (RECIPES / "base" / f"{head}.yaml").read_text()


@pytest.mark.parametrize(
    ("name", "peak", "decay", "rates"),
    [
        # 6e-5, from a millionth of it in 1500 steps, then straight to 0 at 160,000.
        ("upernet_160k", 6e-5, 0.01, {0: 6e-11, 1500: 6e-5, 80750: 3e-5, 156038: 1.5e-6}),
        # 2e-4, from a tenth in 1000 steps, half a cosine over 80,000.
        ("semantic_fpn_80k", 2e-4, 1e-4, {0: 2e-5, 40000: 1e-4, 60000: 2.92893e-5}),
    ],
)
def test_the_published_learning_rate_over_the_run(name, peak, decay, rates):
    cli = read(f"{name}_vmamba_tiny_s1l8")
    total = cli.trainer.max_steps
    assert total == (160_000 if peak == 6e-5 else 80_000)
    config = cli.model.optimizer
    assert (config.lr, config.weight_decay, config.decay) == (peak, decay, "mmdet")
    steps = 20210 // 16
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=peak)
    schedule = build_schedule(optimizer, cli.model.schedule, epochs=total / steps, updates_per_epoch=steps)
    for step, lr in rates.items():
        schedule.step_update(step)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(lr, rel=2e-3), step
