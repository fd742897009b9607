"""Four maps of a network, at strides 4, 8, 16 and 32: what every head here reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import timm
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import unknown
from ..models.backbone import Backbone
from ..models.registry import is_own

STRIDES = (4, 8, 16, 32)


def create_pyramid(
    name: str, *, pretrained: bool = False, arguments: Mapping[str, Any] | None = None
) -> Pyramid:
    """A network of this library or of timm as the backbone of a detector or segmentor.

    Networks of this library get a norm on each of their maps (`out_norms`), as published. arguments: further ones of
    the network, e.g. {"in_chans": 4, "drop_path_rate": 0.2}.

    Raises ValueError for an unknown name and for networks without maps at these strides.
    """
    if not timm.is_model(name):
        raise ValueError(unknown("network", name, timm.list_models()))
    given: dict[str, Any] = {"pretrained": pretrained, **(arguments or {})}
    if is_own(name):
        given.setdefault("out_norms", True)
    try:
        return Pyramid(
            _features(name, given | {"strict_img_size": False})
        )  # windows of any image, not of one size
    except TypeError as error:
        if "strict_img_size" not in str(error):
            raise
    return Pyramid(_features(name, given))


def _features(name: str, arguments: dict[str, Any]) -> Any:
    try:
        network: Any = timm.create_model(name, features_only=True, out_indices=(-4, -3, -2, -1), **arguments)
    except (RuntimeError, AssertionError, AttributeError, IndexError) as error:
        raise ValueError(f"{name} has no maps at strides {STRIDES}: {error}") from error
    found = tuple(network.feature_info.reduction())
    if found != STRIDES:
        raise ValueError(f"{name} has maps at strides {found}: expected {STRIDES}")
    return network


class Pyramid(nn.Module):
    """(B, C, H, W) -> four maps (B, C_i, ceil(H / s), ceil(W / s)) for the strides s of `STRIDES`, of any H and W.

    network: made by timm with `features_only`. channels: of the four maps.
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network
        feature_info: Any = network.feature_info
        self.channels: list[int] = feature_info.channels()
        self._channels_last = str(getattr(network, "output_fmt", "NCHW")).endswith("NHWC")
        self._own = any(isinstance(module, Backbone) for module in network.modules())

    def forward(self, x: Tensor) -> list[Tensor]:
        height, width = x.shape[2:]
        if not self._own:  # other networks cut off, or refuse, what fills no patch
            x = F.pad(x, (0, -width % STRIDES[-1], 0, -height % STRIDES[-1]))
        maps = self.network(x)
        if self._channels_last:
            maps = [m.permute(0, 3, 1, 2) for m in maps]
        if not self._own:
            maps = [m[:, :, : -(-height // s), : -(-width // s)] for m, s in zip(maps, STRIDES, strict=True)]
        return maps
