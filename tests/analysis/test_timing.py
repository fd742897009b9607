"""What times networks: seconds by a clock that is given, steps in turn, and the programs that share it."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from ganglion.analysis.timing import inference, seconds, seconds_in_turn, training

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_seconds_are_the_mean_of_repeats():
    calls, ticks = [], itertools.count(10, 6)
    assert seconds(lambda: calls.append(1), repeats=3, clock=lambda: next(ticks)) == 2
    assert len(calls) == 3


def test_steps_run_in_turn_and_the_first_rounds_do_not_count():
    order, now = [], [0]

    def step(name: str, takes: int):
        def run() -> None:
            order.append(name)
            now[0] += takes if len(order) > 2 else 100

        return run

    steps = {"a": step("a", 1), "b": step("b", 2)}
    found = seconds_in_turn(steps, 2, warmup=1, clock=lambda: now[0])
    assert order == list("ababab") and found == {"a": [1, 1], "b": [2, 2]}


def test_steps():
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    seen = []

    def run(x: torch.Tensor) -> torch.Tensor:
        seen.append((torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")))
        return network(x)

    before = [p.clone() for p in network.parameters()]
    images = torch.randn(4, 3, 2, 2)
    inference(run, images)
    inference(run, images, amp=True)
    training(network, images, run=run)
    training(network, images, amp=True, run=run)
    assert seen == [(False, False), (False, True), (True, False), (True, True)]
    assert all(
        p.grad is None and torch.equal(p, b) for p, b in zip(network.parameters(), before, strict=True)
    )


@pytest.mark.parametrize("train", [False, True])
def test_the_gpu_benchmark_of_networks_times_by_the_same(train, monkeypatch):
    """Rehearsed on a CPU: what it calls a step, and how its rounds run."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.delitem(sys.modules, "gpu_networks", raising=False)
    import gpu_networks

    group = gpu_networks.Group(names=("test_vmamba", "test_convnext"), batch=2, pixels=64, train=train)
    step = gpu_networks.step_of(timm.create_model("test_vmamba"), group, "cpu")
    assert step.func is (training if train else inference) and step.keywords["amp"]
    assert gpu_networks.seconds_in_turn is seconds_in_turn
    rows = list(gpu_networks.measure(group, "cpu", lambda: 1e9, rounds=2))
    assert [row["model"] for row in rows] == list(group.names) and all(
        row["images_per_s"] > 0 for row in rows
    )
