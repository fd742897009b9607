"""GPU backend: Triton kernels."""

from __future__ import annotations

from torch import Tensor

DEVICES = ("cuda", "xpu")


def unavailable() -> str | None:
    """Why this backend cannot run here, None if it can."""
    return "not built yet"


def rejects(x: Tensor, d_state: int, dt_rank: int) -> str | None:
    """Why this backend does not serve the call, None if it does."""
    return None


def forward(*args):
    raise NotImplementedError


def backward(*args):
    raise NotImplementedError
