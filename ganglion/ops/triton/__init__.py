"""GPU backend: Triton kernels, compiled at first use for CUDA, ROCm and XPU devices.

Under TRITON_INTERPRET=1 (set before this is imported) Triton interprets the kernels on the CPU, so that they can be
tested and debugged without a GPU; CPU tensors are served then, very slowly.
"""

from __future__ import annotations

import functools
import importlib.util
import os

import torch

from . import add_norm, scan2d, selective_scan

_INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")

__all__ = ["DEVICES", "add_norm", "scan2d", "selective_scan", "unavailable"]

DEVICES = ("cuda", "xpu", "cpu") if _INTERPRETED else ("cuda", "xpu")


@functools.cache
def unavailable() -> str | None:
    """Why this backend cannot run here, None if it can."""
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    if not (_INTERPRETED or torch.cuda.is_available() or torch.xpu.is_available()):
        return "no GPU: torch finds neither a CUDA or ROCm nor an XPU device"
    return None
