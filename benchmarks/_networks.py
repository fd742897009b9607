"""What benchmarks of networks share beside `ganglion.analysis.timing`: models, medians of ratios, settings."""

from __future__ import annotations

import os
import platform
import statistics
from pathlib import Path

import timm
import torch
from torch import nn

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


def paired_ratio(reference: list[float], other: list[float]) -> tuple[float, float, float]:
    """Median, smallest and largest ratio of speeds, other over reference, of the rounds."""
    ratios = [a / b for a, b in zip(reference, other, strict=True)]
    return statistics.median(ratios), min(ratios), max(ratios)
