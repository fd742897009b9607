"""The `ganglion` command, run in this process."""

from __future__ import annotations

import json

import pytest
import timm
import torch

from ganglion.analysis import dense
from ganglion.analysis.complexity import activation_memory, complexity
from ganglion.heads import create_detector
from ganglion_cli import main
from ganglion_cli.info import HEADS, _describe


def run(capsys, *argv: str) -> str:
    assert main(argv) == 0
    return capsys.readouterr().out


def error(capsys, *argv: str) -> str:
    with pytest.raises(SystemExit) as stop:
        main(argv)
    assert stop.value.code == 2
    return capsys.readouterr().err


def test_json_is_what_the_library_counts(capsys):
    options = ("--img-size", "40", "72", "--batch-size", "3", "--dtype", "bfloat16")
    report = json.loads(run(capsys, "info", "test_vmamba", *options, "--json"))
    model = timm.create_model("test_vmamba")
    cost = complexity(model, (40, 72))
    assert (report["params"], report["flops"], report["img_size"]) == (cost.params, cost.flops, [40, 72])
    assert [part["flops"] for part in report["parts"]] == [part.flops for part in cost.parts]
    for mode in ("inference", "training"):
        memory = activation_memory(model, (40, 72), mode=mode, batch_size=3, dtype=torch.bfloat16)
        assert report["activation_memory"][mode] == memory
    assert report["connections"] == [[[] for _ in stage.blocks] for stage in model.stages]


def test_table_for_people(capsys):
    out = run(capsys, "info", "vmamba_tiny_s2l5", "--img-size", "384")
    assert "vmamba_tiny_s2l5 at 384 x 384" in out
    assert "30.706 M" in out
    assert "14.2743 G" in out
    assert "stages.2  0n 1n 2n 3n 4n" in out


def test_a_detector_over_a_network(capsys):
    argv = ("info", "test_sparx_mamba", "--head", "mask_rcnn", "--num-classes", "3", "--img-size", "64", "96")
    out = run(capsys, *argv)
    assert "mask_rcnn over test_sparx_mamba at 64 x 96" in out
    assert "backbone.stages.2" in out
    assert "  stages.0  " in out
    report = json.loads(run(capsys, *argv, "--json"))
    network = create_detector("mask_rcnn", "test_sparx_mamba", num_classes=3)
    assert (report["head"], report["params"]) == ("mask_rcnn", sum(p.numel() for p in network.parameters()))


def test_every_head_can_be_named():
    assert HEADS == dense.HEADS


def test_a_segmentor_that_needs_two_images_in_training(capsys):
    argv = ("info", "test_vmamba", "--head", "upernet", "--img-size", "64")
    assert "training step none, it needs two images" in run(capsys, *argv)
    assert json.loads(run(capsys, *argv, "--json"))["activation_memory"]["training"] is None
    assert "MiB (batch 2" in run(capsys, *argv, "--batch-size", "2")


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("--paper", "--head", "upernet"), "not both"),
        (("test_vmamba", "--num-classes", "3"), "expected --head, too"),
        (("test_vmamba", "--head", "unet"), "Did you mean upernet"),
    ],
)
def test_options_of_heads_that_do_not_fit(capsys, argv, said):
    assert said in error(capsys, "info", *argv)


def test_attention_is_counted_when_asked_for(capsys):
    argv = ("info", "test_vit", "--img-size", "160", "--json")
    without, included = (json.loads(run(capsys, *argv, *flag)) for flag in ((), ("--attention",)))
    assert included["flops"] - without["flops"] == without["attention_flops"] > 0


def test_connections_of_a_ganglion_network():
    kwargs = {"depths": (1, 2, 7, 1), "stride": (1, 1, 2, 1), "window": 2, "start": (None, 1, 0, 0)}
    plans = timm.create_model("test_sparx_mamba", device="meta", **kwargs).config.plans()
    assert [_describe(plan) for plan in plans[:3]] == [
        "0n",
        "0n 1g[S 0n]",
        "0g[S] 1n 2g[1n 0g] 3n 4g[3n 0g 2g] 5n 6g[5n 2g 4g]",
    ]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("info", "vmamba_tinny_s2l5"), "'vmamba_tinny_s2l5'. Did you mean 'vmamba_tiny_s2l5'?"),
        (("info",), "expected either a model or --paper"),
        (("info", "test_vmamba", "--paper"), "expected either a model or --paper"),
        (("info", "test_vmamba", "--img-size", "0"), "'0': expected a whole number of at least 1"),
        (("info", "test_vmamba", "--img-size", "224.5"), "'224.5': expected a whole number of at least 1"),
        (("info", "test_vmamba", "--img-size", "1", "2", "3"), "1 2 3: expected one or two numbers"),
        (("info", "test_vmamba", "--img-size", "99999"), "at most 32768"),
        (("info", "test_vmamba", "--dtype", "int8"), "invalid choice: 'int8'"),
        (("inform",), "invalid choice: 'inform'"),
    ],
)
def test_bad_arguments(capsys, argv, message):
    assert message in error(capsys, *argv)


def test_a_size_that_the_network_cannot_take(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["info", "test_vit", "--img-size", "100", "--json"])
    captured = capsys.readouterr()
    assert stop.value.code == 1
    assert "cannot count test_vit at 100 x 100: Input height (100)" in captured.err
    assert json.loads(captured.out)["error"] in captured.err


def test_backends(capsys):
    from ganglion.ops import backends

    out = run(capsys, "backends")
    assert [line.split()[0] for line in out.splitlines()] == [status.name for status in backends()]
    assert "torch    available" in out
    report = json.loads(run(capsys, "backends", "--json"))
    assert [(r["name"], r["available"], r["reason"]) for r in report] == [
        (s.name, s.available, s.reason) for s in backends()
    ]
