"""Which weights of a file are a network's: the layouts in which training scripts save them."""

from __future__ import annotations

import re

import pytest
import timm
import torch

import ganglion  # noqa: F401  registers the models
from ganglion.models.weight_loading import load_checkpoint
from ganglion.models.weight_names import to_official
from tests.models.refusals import assert_refused, assert_same, snapshot, under


def rewrite_names(published):
    """Release -> the single-file rewrite: the scan's projections as layers, patch merging numbered."""
    out = {}
    for name, value in published.items():
        if name.endswith("x_proj_weight"):
            name, value = name.replace("x_proj_weight", "x_proj.weight"), value.flatten(0, 1)
        elif name.endswith("dt_projs_weight"):
            name, value = name.replace("dt_projs_weight", "dt_projs.weight"), value.flatten(0, 1)
        elif ".downsample.norm." in name:
            name = name.replace("downsample.norm", "downsample.1")
        elif ".downsample.reduction." in name:
            name = name.replace("downsample.reduction", "downsample.2")
        elif name.endswith((".in_proj.weight", ".fc1.weight")):
            value = value[:, :, None, None]
        out[name] = value
    return out


LAYOUTS = {
    "release": lambda w: {"model": w},
    "bare": lambda w: w,
    "rewrite": lambda w: {"model": rewrite_names(w)},
    "data parallel": lambda w: {"state_dict": under("module.", w)},
    "compiled": lambda w: {"state_dict": under("module._orig_mod.", w)},
    "mmseg": lambda w: {
        "meta": {"epoch": 3},
        "state_dict": under("backbone.", w) | {"decode_head.conv.weight": torch.zeros(3, 3)},
    },
    "ema wins": lambda w: {"model": {k: v + 1 for k, v in w.items()}, "model_ema": under("module.", w)},
    "lightning ema": lambda w: {
        "state_dict": under("model.", w),
        "current_model_state": under("model.", {k: v + 1 for k, v in w.items()}),
    },
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("downsample", ["conv3", "merge"])
def test_layouts(layout, downsample):
    model = timm.create_model("test_vmamba", num_classes=7, img_size=64, downsample=downsample)
    expected = {k: torch.randn(v.shape) for k, v in model.state_dict().items()}
    report = load_checkpoint(model, LAYOUTS[layout](to_official(expected, "vmamba")))
    assert_same(model.state_dict(), expected)
    assert report.complete and report.layout == "vmamba" and set(report.loaded) == set(expected)
    assert report.ignored == (("decode_head.conv.weight",) if layout == "mmseg" else ())


def test_weights_argument(model, published):
    averaged = {k: v + 1 for k, v in published.items()}
    both = {"model": published, "model_ema": averaged, "optimizer": {"step": 3}}
    bias = published["classifier.head.bias"]
    for choice, expected in (("raw", bias), ("ema", bias + 1), ("auto", bias + 1)):
        load_checkpoint(model, both, weights=choice)
        assert torch.equal(model.head.fc.bias, expected), choice
    assert_refused(model, {"model": published}, "averaged", "model_ema", weights="ema")
    assert_refused(model, {"model_ema": published}, "averaged weights only", weights="raw")
    assert_refused(model, both, "'emma'", "Did you mean 'ema'", error=ValueError, weights="emma")

    assert_refused(model, {"model": published, "ema": 0.99}, "averaged", weights="ema")


AVERAGES = {
    **{
        key: lambda w, key=key: {key: w}
        for key in (
            "ema",
            "model_ema",
            "ema_model",
            "module_ema",
            "ema_weights",
            "state_dict_ema",
            "ema_state_dict",
            "model_ema_state_dict",
            "emaModel",
            "EMA",
            "swa_state_dict",
            "averaged_model",
            "model_avg",
            "polyak",
            "params_ema",
        )
    },
    "of a callback": lambda w: {"callbacks": {"EMACallback": {"decay": 0.99, "weights": w}}},
    "shadow": lambda w: {"ema": {"decay": 0.999, "num_updates": 3, "shadow": w}},
    "data parallel": lambda w: {"model_ema": {"module": under("module.", w)}},
    "of torch": lambda w: {"swa": {"n_averaged": torch.tensor(3), **under("module.", w)}},
    "of torch, by its count": lambda w: {"second": {"n_averaged": torch.tensor(3), **under("module.", w)}},
}


@pytest.mark.parametrize("raw", ["model", "state_dict", "net", "model_state_dict"])
@pytest.mark.parametrize("layout", AVERAGES)
def test_averages_under_any_usual_name(model, published, layout, raw):
    averaged = {k: v + 1 for k, v in published.items()}
    content = {raw: published, **AVERAGES[layout](averaged), "epoch": 3}
    bias = published["classifier.head.bias"]
    for choice, expected in (("auto", bias + 1), ("ema", bias + 1), ("raw", bias)):
        report = load_checkpoint(model, content, weights=choice)
        assert report.complete and torch.equal(model.head.fc.bias, expected), choice


def test_averages_beside_the_weights_of_one_module(model, published):
    """As a LightningModule has them that keeps both networks."""
    averaged = {k: v + 1 for k, v in published.items()}
    content = {"state_dict": under("online_model.", published) | under("ema_model.module.", averaged)}
    bias = published["classifier.head.bias"]
    for choice, expected in (("auto", bias + 1), ("raw", bias)):
        load_checkpoint(model, content, weights=choice)
        assert torch.equal(model.head.fc.bias, expected), choice


def test_choices_are_named(model, published):
    assert_refused(model, {"first": published, "second": dict(published)}, "'first', 'second'", "pass the")
    averages = {"model": published, "ema_fast": dict(published), "ema_slow": dict(published)}
    assert_refused(model, averages, "several networks of averaged weights", "'ema_fast', 'ema_slow'")
    load_checkpoint(model, averages, weights="raw")
    # One dictionary under two names is no choice; nor is what an optimizer keeps under the names of the weights.
    state = under("state.", {f"{k}.exp_avg": v for k, v in published.items()})
    load_checkpoint(model, {"model": published, "best": published, "optimizer": state})


@pytest.mark.parametrize("key", ["ema", "model_ema"])
def test_averages_without_names_are_not_passed_over(model, published, key):
    listed = {"model": published, key: {"decay": 0.9, "shadow_params": list(published.values())}}
    own_names = under("model.", published) | {f"{key}.{k.replace('.', '')}": v for k, v in published.items()}
    for content in (listed, own_names):
        assert_refused(model, content, repr(key), "weights='raw'")
        assert_refused(model, content, repr(key), "no averaged weights", weights="ema")
        load_checkpoint(model, content, weights="raw")
        assert torch.equal(model.head.fc.bias, published["classifier.head.bias"])


WRAPPERS = ("_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module", "module")


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("names", ["published", "ours"])
def test_files_of_wrapped_blocks(model, published, wrapper, names):
    state = (
        published if names == "published" else {k: torch.randn(v.shape) for k, v in snapshot(model).items()}
    )
    inside = {re.sub(r"(blocks\.\d+\.)", rf"\1{wrapper}.", k): v for k, v in state.items()}
    wrapped = under(wrapper + ".", {k.replace("head.", f"head.{wrapper}."): v for k, v in inside.items()})
    for content in (inside, wrapped, {"model_state_dict": wrapped, "epoch": 1}):
        assert content != state
        model.head.fc.bias.data.zero_()
        assert load_checkpoint(model, content).complete
        bias = "classifier.head.bias" if names == "published" else "head.fc.bias"
        assert torch.equal(model.head.fc.bias, state[bias])


def test_wrapped_blocks_take_any_file(model):
    """As regional compilation makes them."""
    expected = {k: torch.randn(v.shape) for k, v in snapshot(model).items()}
    for stage in model.stages:
        for i, block in enumerate(stage.blocks):
            stage.blocks[i] = torch.compile(block, backend="eager")
    model.stem = torch.compile(model.stem, backend="eager")
    own = {k.replace("._orig_mod", ""): k for k in model.state_dict()}
    assert own.keys() == expected.keys() != set(own.values())
    wrapped = {own[k]: v for k, v in expected.items()}
    for content in (expected, to_official(expected, "vmamba"), wrapped):
        for parameter in model.parameters():
            parameter.data.zero_()
        report = load_checkpoint(model, content)
        assert report.complete and set(report.loaded) == expected.keys()
        assert_same(model.state_dict(), wrapped)
