"""Fixtures of the operators' tests."""

from __future__ import annotations

import pytest
import torch

from ganglion.ops import cpu


@pytest.fixture(params=cpu.instruction_sets())
def isa(request, monkeypatch):
    """Runs a test with each instruction set of this machine."""
    monkeypatch.setenv(cpu.ISA_ENV, request.param)
    return request.param


@pytest.fixture
def poison():
    """Fresh memory is full of NaN, so that a read of what was never written shows."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)
