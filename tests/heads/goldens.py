"""The published detectors and segmentors on small backbones: their weights, and ours with them."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn

import ganglion
from ganglion.heads import create_detector, create_segmentor
from tests.golden.golden_weights import fill, golden_input
from tests.golden_data import Golden, load


@cache
def golden(name: str) -> Golden:
    return load(f"dense/{name}")


def weights(name: str) -> dict[str, Tensor]:
    """In the published names."""
    meta = golden(name).meta
    arrays = fill(meta["fill_name"], {entry["name"]: entry["shape"] for entry in meta["state_dict"]})
    for change in meta.get("adjust", ()):
        part = arrays[change["name"]]
        part = part if change.get("index") is None else part[change["index"] : change["index"] + 1]
        part *= change.get("mul", 1)
        part += change.get("add", 0)
    return {key: torch.from_numpy(value.copy()) for key, value in arrays.items()}


@cache
def built(name: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    """Ours with the published weights, in evaluation mode. Shared: leave it as it was."""
    meta = golden(name).meta
    create, own = (create_detector, {}) if name == "mask_rcnn" else (create_segmentor, {"dropout": 0.0})
    backbone = meta["backbone"]
    arguments = backbone["arguments"] | ({"learned_scale": False} if backbone["family"] == "sparx" else {})
    made = create(name, backbone["model"], num_classes=meta["num_classes"], backbone_args=arguments, **own)
    assert sum(p.numel() for p in made.parameters()) == meta["param_count"]
    assert ganglion.load_checkpoint(made, {"state_dict": weights(name), "meta": {}}).complete
    return made.to(dtype).eval()


def image(batch: int, height: int, width: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.from_numpy(golden_input(batch, height, width, seed)).to(dtype)
