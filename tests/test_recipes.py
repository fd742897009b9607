"""Every recipe, read as `ganglion fit` reads it, against what the papers' scripts did."""

from __future__ import annotations

import hashlib
import json
import math
import re
from fnmatch import fnmatch
from pathlib import Path

import pytest
import timm
import torch
import yaml
from torch import nn

from ganglion.tasks import fit
from ganglion.tasks.classification.training import Classification, ClassificationData
from ganglion.training import messages
from ganglion.training.averaging import EMA
from ganglion.training.optimization import OptimizerConfig, build_optimizer

from .tasks.runs import write_data

pytestmark = pytest.mark.filterwarnings("ignore:.*precision='16-mixed'", "ignore::DeprecationWarning")

RECIPES = Path(__file__).parents[1] / "recipes"
IMAGES = 1_281_167  # of ImageNet-1K

# What all networks of a paper share. peak: learning rate at this batch. warm: first learning rate.
VMAMBA = {
    "batch": 1024, "peak": 1e-3, "warm": 1e-6, "min_lr": 1e-5, "epochs": 300, "warmup": 20, "prefix": True,
    "cooldown": 0, "per": "step", "sync_bn": False, "seed": 0, "interpolation": "bicubic", "ema": 0.9999, "crop": 0.875,
}  # fmt: skip
SPARX = {
    "batch": 2048, "peak": 4e-3, "warm": 1e-6, "min_lr": 1e-5, "epochs": 310, "warmup": 20, "prefix": False,
    "cooldown": 10, "per": "epoch", "sync_bn": True, "seed": 42, "interpolation": "random", "ema": 0.9998, "crop": 0.95,
}  # fmt: skip
BOTH = {
    "size": 224, "smoothing": 0.1, "mixing": (0.8, 1.0, 1.0, 0.5, "batch"), "randaugment": "rand-m9-mstd0.5-inc1",
    "jitter": 0.4, "erasing": (0.25, "pixel", 1), "scale": (0.08, 1.0), "hflip": 0.5, "clip": 5.0,
    "precision": "16-mixed", "optimizer": "adamw", "decay": (0.05, "published"),
    "betas": (0.9, 0.999), "eps": 1e-8, "classes": 1000,
}  # fmt: skip
PUBLISHED = {
    "vanilla_vmamba_tiny": VMAMBA | {"drop_path": 0.2, "ema": 0.0},
    "vanilla_vmamba_small": VMAMBA | {"drop_path": 0.3},
    "vanilla_vmamba_base": VMAMBA | {"drop_path": 0.6},
    "vmamba_tiny_s2l5": VMAMBA | {"drop_path": 0.2},
    "vmamba_small_s2l15": VMAMBA | {"drop_path": 0.3},
    "vmamba_base_s2l15": VMAMBA | {"drop_path": 0.6},
    "vmamba_tiny_s1l8": VMAMBA | {"drop_path": 0.2},
    "vmamba_small_s1l20": VMAMBA | {"drop_path": 0.3},
    "vmamba_base_s1l20": VMAMBA | {"drop_path": 0.5},
    "sparx_mamba_tiny": SPARX | {"drop_path": 0.2, "crop": 0.9},
    "sparx_mamba_small": SPARX | {"drop_path": 0.3},
    "sparx_mamba_base": SPARX | {"drop_path": 0.5},
    "sparx_swin_tiny": SPARX | {"drop_path": 0.2, "crop": 0.9},
    "sparx_swin_base": SPARX | {"drop_path": 0.5},
    "sparx_ssm_tiny": SPARX | {"drop_path": 0.2, "crop": 0.9},
    "sparx_bissm_tiny": SPARX | {"drop_path": 0.2, "crop": 0.9},
}
EVERY = sorted(path.relative_to(RECIPES).as_posix() for path in RECIPES.rglob("*.yaml"))
EVERY = [recipe for recipe in EVERY if not recipe.startswith(("detection/", "segmentation/"))]  # tests/tasks
ALL = [recipe for recipe in EVERY if "/base/" not in recipe]  # what can be run


@pytest.fixture(scope="module", autouse=True)
def quiet():
    messages.quiet_libraries()


def read(recipe: str, *options: str) -> fit.FitCLI:
    """Everything that a run of the recipe is made of; no data are needed."""
    return fit.FitCLI(Classification, ClassificationData, ["--config", str(RECIPES / recipe), *options])


def prepare(cli: fit.FitCLI):
    """Optimizer and schedule of a run on ImageNet, and optimizer steps of its epochs, for a network of one layer."""
    task, trainer = cli.model, cli.trainer
    trainer.datamodule, task.trainer = cli.datamodule, trainer
    steps = IMAGES // task.global_batch_size
    task._length = lambda: (float(trainer.max_epochs), steps)
    task.network = nn.Linear(2, 2)
    made = task.configure_optimizers()
    return made["optimizer"], made["lr_scheduler"]["scheduler"], steps


def facts(cli: fit.FitCLI) -> dict:
    task, data, trainer = cli.model, cli.datamodule, cli.trainer
    schedule, mixing, augmentation = task.schedule, task.mixing, data.augmentation
    optimizer, scheduler, _ = prepare(cli)
    cli.model.network = timm.create_model(
        task.name, device="meta", num_classes=task.num_classes, **task.model_args
    )
    config = data.data_config(task.network)
    averaging = [callback.decay for callback in trainer.callbacks if isinstance(callback, EMA)]
    assert schedule.name == "cosine" and trainer.gradient_clip_algorithm in (None, "norm")
    assert (
        not task.compiled
        and not task.pretrained
        and task.initial_checkpoint is None
        and optimizer.defaults["lr"] > 0
    )
    return {
        "batch": trainer.num_devices * trainer.num_nodes * data.batch_size * trainer.accumulate_grad_batches,
        "peak": scheduler.base_values[0],
        "warm": scheduler.warmup_lr_init,
        "min_lr": scheduler.lr_min,
        "epochs": trainer.max_epochs,
        "warmup": schedule.warmup_epochs,
        "prefix": schedule.warmup_prefix,
        "cooldown": schedule.cooldown_epochs,
        "per": schedule.per,
        "sync_bn": cli.config["trainer"]["sync_batchnorm"],
        "seed": task.seed,
        "interpolation": augmentation.interpolation,
        "ema": sum(averaging),
        "crop": config["crop_pct"],
        "drop_path": task.network.stages[-1].blocks[-1].drop_path.drop_prob,
        "size": config["input_size"][1],
        "smoothing": task.label_smoothing,
        "mixing": (mixing.mixup, mixing.cutmix, mixing.prob, mixing.switch_prob, mixing.mode),
        "randaugment": augmentation.auto_augment,
        "jitter": augmentation.color_jitter,
        "erasing": (augmentation.re_prob, augmentation.re_mode, augmentation.re_count),
        "scale": augmentation.scale,
        "hflip": augmentation.hflip,
        "clip": trainer.gradient_clip_val,
        "precision": cli.config["trainer"]["precision"],  # the trainer's own is what a CPU makes of it
        "optimizer": type(optimizer).__name__.lower(),
        "decay": (task.optimizer.weight_decay, task.optimizer.decay),
        "betas": optimizer.defaults["betas"],
        "eps": optimizer.defaults["eps"],
        "classes": task.num_classes,
    }


def test_every_published_network_has_its_recipe():
    there = {Path(recipe).stem for recipe in ALL if recipe.startswith("imagenet1k/")}
    assert there == PUBLISHED.keys()


@pytest.mark.parametrize("recipe", ALL)
def test_recipe_is_whole(recipe):
    """It names a network that exists, its own folder, and, in its head, the command that runs it."""
    cli = read(recipe)
    assert timm.is_model(cli.model.name)
    assert cli.config["output"] == f"outputs/{recipe.removesuffix('.yaml')}"
    text = (RECIPES / recipe).read_text()
    assert f"ganglion fit --config recipes/{recipe} " in text
    for name in re.findall(r"--model\.name ([a-z]+(?:_[a-z0-9]+)+)\b", text):
        assert timm.is_model(name) or name == "sparx_mamba_tiny_STUDY", name


#: Digests of what `--print_config=skip_default` printed when each recipe was one file with every field
#: (of the one that names `model.initial_checkpoint`, since that is its name).
DIGESTS = {
    "cifar10/finetune_sparx_mamba_nano.yaml": "b45758803a4a",
    "cifar10/sparx_mamba_nano.yaml": "07030fbbf129",
    "finetune/folder.yaml": "d4056c4a1aa2",
    "finetune/folder_384.yaml": "176c171e66b6",
    "imagenet1k/sparx_bissm_tiny.yaml": "8658426d8106",
    "imagenet1k/sparx_mamba_base.yaml": "25b1880b35d6",
    "imagenet1k/sparx_mamba_small.yaml": "93297c5f3c6d",
    "imagenet1k/sparx_mamba_tiny.yaml": "891e4c15f518",
    "imagenet1k/sparx_ssm_tiny.yaml": "a5aecfb3ba2d",
    "imagenet1k/sparx_swin_base.yaml": "76f2fa50ecf2",
    "imagenet1k/sparx_swin_tiny.yaml": "8b975d16cd70",
    "imagenet1k/vanilla_vmamba_base.yaml": "1446044e78d0",
    "imagenet1k/vanilla_vmamba_small.yaml": "c5540eab0ae1",
    "imagenet1k/vanilla_vmamba_tiny.yaml": "88207d3491cf",
    "imagenet1k/vmamba_base_s1l20.yaml": "d4da1685125d",
    "imagenet1k/vmamba_base_s2l15.yaml": "7474695b07e0",
    "imagenet1k/vmamba_small_s1l20.yaml": "eed578694b7e",
    "imagenet1k/vmamba_small_s2l15.yaml": "b0aa9df24f85",
    "imagenet1k/vmamba_tiny_s1l8.yaml": "55a4da679d66",
    "imagenet1k/vmamba_tiny_s2l5.yaml": "66624b1d002c",
}


def test_a_recipe_is_what_it_was_as_one_file(capsys):
    """Fields that differ from their defaults, of every recipe: new fields do not count, new values have to be meant."""
    found = {}
    for recipe in ALL:
        with pytest.raises(SystemExit) as end:
            fit.main(["--config", str(RECIPES / recipe), "--print_config=skip_default"])
        assert not end.value.code
        fields = yaml.safe_load(capsys.readouterr().out)
        found[recipe] = hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:12]
    assert found == DIGESTS


@pytest.mark.parametrize("name", PUBLISHED)
def test_as_the_scripts_ran(name):
    cli = read(f"imagenet1k/{name}.yaml")
    assert cli.model.name == name
    found, expected = facts(cli), BOTH | PUBLISHED[name]
    assert found.keys() == expected.keys()
    for fact, value in expected.items():
        assert found[fact] == (pytest.approx(value, rel=1e-6) if isinstance(value, float) else value), fact


@pytest.mark.parametrize("name", ["vmamba_small_s2l15", "sparx_mamba_small"])
def test_learning_rate_over_the_run(name):
    """By hand, from the description of the scripts alone."""
    cli = read(f"imagenet1k/{name}.yaml")
    optimizer, scheduler, steps = prepare(cli)

    def lr(epoch: float) -> float:
        step = round(epoch * steps)
        if cli.model.schedule.per == "step":
            scheduler.step_update(step)
        else:
            scheduler.step(step // steps)
        return optimizer.param_groups[0]["lr"]

    def cosine(peak: float, part: float) -> float:
        return 1e-5 + (peak - 1e-5) * (1 + math.cos(math.pi * part)) / 2

    if name.startswith("vmamba"):
        expected = {
            0: 1e-6,
            10: (1e-6 + 1e-3) / 2,
            20: 1e-3,
            90: cosine(1e-3, 1 / 4),
            160: (1e-3 + 1e-5) / 2,
            160 + 1 / 3: cosine(1e-3, (140 + 1 / 3) / 280),  # it falls within an epoch
            230: cosine(1e-3, 3 / 4),
            300: 1e-5,
        }
    else:
        expected = {
            0: 1e-6,
            10: (1e-6 + 4e-3) / 2,
            19: 1e-6 + 19 / 20 * (4e-3 - 1e-6),
            20: cosine(4e-3, 20 / 300),  # the cosine began at epoch 0, under the warm-up
            150: (4e-3 + 1e-5) / 2,
            150.5: (4e-3 + 1e-5) / 2,  # it keeps its value within an epoch
            299: cosine(4e-3, 299 / 300),
            300: 1e-5,
            309: 1e-5,
        }
    for epoch, value in expected.items():
        assert lr(epoch) == pytest.approx(value, rel=1e-3 if epoch % 1 else 1e-6), epoch


def test_other_batch_scales_vmamba_and_not_sparx():
    """On two devices with a quarter of the batch: VMamba's rule is linear, SparX's script had none."""
    found = {}
    for name in ("vmamba_tiny_s2l5", "sparx_mamba_tiny"):
        cli = read(f"imagenet1k/{name}.yaml", "--trainer.devices=2")
        _, scheduler, _ = prepare(cli)
        found[name] = (scheduler.warmup_lr_init, scheduler.base_values[0], scheduler.lr_min)
    assert found["vmamba_tiny_s2l5"] == pytest.approx((2.5e-7, 2.5e-4, 2.5e-6))
    assert found["sparx_mamba_tiny"] == pytest.approx((1e-6, 4e-3, 1e-5))


#: What decays in the scripts, by the kind of module and the parameter's name.
_MATRICES = {("Conv2d", "weight"), ("Linear", "weight"), ("DepthwiseConv2d", "weight"),
             ("ResidualDWConv", "weight"), ("SS2D", "x_proj_weight"), ("SS2D", "dt_projs_weight")}  # fmt: skip
_SCALES = {("SS2D", "A_logs"), ("SS2D", "dt_projs_bias"), ("IdentityScale", "weight"),
           ("WindowAttention", "relative_position_bias_table")}  # fmt: skip
_NEVER = ("Ds", "bias", "pos_embed.weight", "*Norm*.weight")


@pytest.mark.parametrize("decay", ["published", "corrected"])
@pytest.mark.parametrize("model", ["test_vmamba", "test_sparx_mamba", "test_sparx_swin"])
def test_what_decays(model, decay):
    network = timm.create_model(model)
    optimizer = build_optimizer(network, OptimizerConfig(weight_decay=0.05, decay=decay), lr=1e-3)
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    kinds = set()
    for name, parameter in network.named_parameters():
        owner, _, leaf = name.rpartition(".")
        kind = (type(network.get_submodule(owner)).__name__, leaf)
        kinds.add(kind)
        expected = kind in _MATRICES or (decay == "published" and kind in _SCALES)
        never = any(fnmatch(s, pattern) for s in (name, leaf, ".".join(kind)) for pattern in _NEVER)
        assert never != (kind in _MATRICES | _SCALES), name  # the two lists know every parameter, once
        assert decays[id(parameter)] == (0.05 if expected else 0), name
    of_scans = {("SS2D", "A_logs"), ("SS2D", "dt_projs_bias"), ("SS2D", "Ds")}
    of_windows = {("WindowAttention", "relative_position_bias_table")}
    assert (of_windows if model == "test_sparx_swin" else of_scans) <= kinds
    assert (("IdentityScale", "weight") in kinds) == (model != "test_vmamba")


@pytest.mark.parametrize(
    "recipe",
    [
        "imagenet1k/vmamba_tiny_s2l5.yaml",
        "imagenet1k/sparx_mamba_tiny.yaml",
        *(recipe for recipe in ALL if not recipe.startswith("imagenet1k/")),
    ],
)
def test_recipe_runs(recipe, tmp_path, monkeypatch):
    """Two epochs of one step with a tiny network: the fields work together."""
    data = write_data(tmp_path / "data", train=8, test=4)
    options = {
        "model.name": "test_sparx_mamba" if "sparx" in recipe else "test_vmamba",
        "model.num_classes": 4,
        "model.pretrained": "false",
        "model.initial_checkpoint": "null",
        "data.root": data,
        "data.val_split": "test",
        "data.img_size": 32,
        "data.batch_size": 4,
        "data.workers": 0,
        "trainer.devices": 1,
        "trainer.strategy": "auto",
        "trainer.precision": "32-true",
        "trainer.max_epochs": 2,
        "schedule.warmup_epochs": 1,
        "schedule.cooldown_epochs": 0,
        "output": tmp_path / "run",
    }
    argv = ["--config", str(RECIPES / recipe), *(f"--{key}={value}" for key, value in options.items())]
    assert fit.main(argv) == 0
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()
    ran = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert ran["optimizer"]["lr"] == read(recipe).config["optimizer"]["lr"] and "base" not in ran
    assert torch.get_default_dtype() == torch.float32
