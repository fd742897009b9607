"""What the benchmarks of networks share: models in turn in one process, medians of paired ratios, settings."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import timm
import torch
from torch import Tensor, nn

import ganglion


def settings(**others: object) -> str:
    """One line that says on what and how was measured."""
    parts = {
        "cpu": _cpu_name(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "default"),
        "torch": torch.__version__,
        "timm": timm.__version__,
        "ganglion": ganglion.__version__,
        "backends": "/".join(row.name for row in ganglion.backends() if row.available),
        **others,
    }
    return ", ".join(f"{key} {value}" for key, value in parts.items())


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def build(name: str, dtype: torch.dtype, *, train: bool, **kwargs) -> nn.Module:
    """A model of timm's registry in channels-last memory."""
    torch.manual_seed(0)
    model = timm.create_model(name, **kwargs).to(dtype=dtype, memory_format=torch.channels_last)
    return model.train(train)


def forward(model: nn.Module, x: Tensor) -> None:
    """One inference step."""
    with torch.inference_mode():
        model(x)


def training_step(model: nn.Module, x: Tensor) -> None:
    """Forward, cross entropy and backward; no optimizer."""
    model.zero_grad(set_to_none=True)
    target = torch.arange(x.shape[0]) % 10
    nn.functional.cross_entropy(model(x).float(), target).backward()


def seconds_in_turn(
    steps: Mapping[str, Callable[[], None]], rounds: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Seconds of each step, all run once in every round after a first one that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(rounds + 1):
        for name, step in steps.items():
            start = clock()
            step()
            if turn:
                seconds[name].append(clock() - start)
    return seconds


def paired_ratio(reference: list[float], other: list[float]) -> tuple[float, float, float]:
    """Median, smallest and largest ratio of speeds, other over reference, of the rounds."""
    ratios = [a / b for a, b in zip(reference, other, strict=True)]
    return statistics.median(ratios), min(ratios), max(ratios)
