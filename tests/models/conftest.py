"""Fixtures of the networks' tests."""

from __future__ import annotations

import pytest
import timm
import torch

import ganglion  # noqa: F401  registers the models
from ganglion.models.weight_names import to_official


@pytest.fixture
def model():
    torch.manual_seed(0)
    return timm.create_model("test_vmamba", num_classes=7, img_size=64)


@pytest.fixture
def published(model):
    """A checkpoint in the release names whose values are not the model's."""
    weights = {k: torch.randn(v.shape) for k, v in model.state_dict().items()}
    return to_official(weights, "vmamba")
