"""The networks of the analyses' golden data."""

from __future__ import annotations

import numpy as np
import timm
import torch
from torch import nn

import ganglion  # noqa: F401
from tests.golden.golden_weights import fill
from tests.golden_data import load

NAMES = ("test_vmamba", "test_sparx_mamba")


def golden_network(name: str, file: str) -> nn.Module:
    """One of `NAMES` with the weights of analysis/erf or analysis/cka."""
    meta = load(file).meta
    shapes = meta["models"][name]["state_dict"] if "models" in meta else meta["networks"]["state_dict"][name]
    network = timm.create_model(name, num_classes=10)
    network.load_state_dict({k: torch.from_numpy(np.array(v)) for k, v in fill(name, dict(shapes)).items()})
    return network
