from __future__ import annotations

import warnings

import pytest
import torch

import ganglion
from ganglion.ops import BackendError, backends, pattern, scan2d
from ganglion.ops.dispatch import BACKENDS, ENV, _announce, choose
from tests.ops.test_scan2d import inputs

X = torch.zeros(1, 2, 2, 4)


@pytest.fixture
def no_native(monkeypatch):
    """A machine without the native kernels, which has announced nothing yet."""
    monkeypatch.setattr(BACKENDS["cpu"], "unavailable", lambda: "no compiler was found")
    _announce.cache_clear()
    yield
    _announce.cache_clear()


def test_every_backend_is_listed_with_a_reason_if_missing():
    rows = {row.name: row for row in ganglion.backends()}
    assert list(rows) == ["triton", "cpu", "torch"]
    assert all(row.available == (row.reason == "") for row in rows.values())
    assert rows["torch"].available


def test_missing_kernels_are_listed_with_the_reason(no_native):
    assert {row.name: row.reason for row in backends()}["cpu"] == "no compiler was found"


def test_a_fallback_is_announced_once(no_native):
    with pytest.warns(
        RuntimeWarning, match="slower backend 'torch'.*'cpu': no compiler was found.*GANGLION_BACKEND"
    ):
        assert choose("scan2d", X, d_state=1, dt_rank=1) is BACKENDS["torch"].scan2d
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        choose("scan2d", X, d_state=1, dt_rank=1)


def test_a_fallback_can_be_forbidden(no_native, monkeypatch):
    with pytest.raises(BackendError, match="no compiler was found"):
        scan2d(*inputs(), routes=pattern("cross2d"), backend="cpu")
    monkeypatch.setenv(ENV, "no-torch")
    with pytest.raises(BackendError, match="no compiler was found"):
        choose("scan2d", X, d_state=1, dt_rank=1)


def test_argument_and_variable_force_a_backend(monkeypatch):
    assert choose("scan2d", X, "torch", d_state=1, dt_rank=1) is BACKENDS["torch"].scan2d
    monkeypatch.setenv(ENV, "torch")
    assert choose("scan2d", X, d_state=1, dt_rank=1) is BACKENDS["torch"].scan2d


def test_forcing_a_backend_of_another_device_is_an_error(monkeypatch):
    monkeypatch.setattr(BACKENDS["cpu"], "unavailable", lambda: None)
    with pytest.raises(BackendError, match="it serves cpu tensors"):
        choose("scan2d", X.to("meta"), "cpu", d_state=1, dt_rank=1)


def test_unknown_names_are_explained(monkeypatch):
    with pytest.raises(ValueError, match=r"backend: unknown backend 'tritn'. Did you mean 'triton'\?"):
        choose("scan2d", X, "tritn", d_state=1, dt_rank=1)
    monkeypatch.setenv(ENV, "cuda")
    with pytest.raises(ValueError, match="GANGLION_BACKEND: unknown backend 'cuda'"):
        choose("scan2d", X, d_state=1, dt_rank=1)
