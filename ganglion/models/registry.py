"""What the entries of timm's registry share: how a network is built, and what its weights expect of an image."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any, TypeVar

import timm
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg
from timm.models._features import FeatureGetterNet
from torch import Tensor

from ..config import override
from ..errors import unknown
from .backbone import Backbone, no_script
from .weight_loading import checkpoint_filter_fn

Network = TypeVar("Network", bound=Backbone)

#: Arguments that timm takes out before the network is made.
_TIMMS = inspect.signature(build_model_with_cfg).parameters.keys() | {
    "features_only",
    "out_indices",
    "feature_cls",
}


class Pyramid(FeatureGetterNet):
    """timm's `features_only=True` form, with a result that TorchScript knows, and gradient checkpointing."""

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = self.model.forward_intermediates(  # pyright: ignore[reportCallIssue]  TorchScript takes no Any
            x,
            indices=self.out_indices,
            norm=self.norm,
            output_fmt=self.output_fmt,
            intermediates_only=True,
        )
        assert isinstance(maps, list)
        return maps

    @no_script
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """As the network's."""
        model: Any = self.model
        model.set_grad_checkpointing(enable)


def default_cfg(**kwargs: Any) -> dict[str, Any]:
    """timm's description of a network's weights and images, ImageNet's unless `kwargs` say otherwise."""
    return {
        "url": "",
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": (7, 7),
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "stem.0.conv",
        "classifier": "head.fc",
        **kwargs,
    }


def build(network: type[Network], variant: str, pretrained: bool, config: Any, **kwargs: Any) -> Network:
    """The network named `variant`. Fields of its configuration among `kwargs` override those of `config`.

    Raises TypeError, naming the nearest right ones, for arguments that neither the configuration nor the network has,
    and ValueError for a `feature_cls` that would leave out the network's `out_norms`.
    """
    own = {field.name for field in dataclasses.fields(config)}
    own |= inspect.signature(network.__init__).parameters.keys() - {"self", "config"}
    for name in kwargs.keys() - own - _TIMMS:
        raise TypeError(f"{variant}: {unknown('argument', name, own)}")
    if kwargs.get("features_only") and kwargs.get("out_norms") and not _asks_the_network(kwargs):
        raise ValueError(
            f"{variant}: feature_cls={kwargs['feature_cls']!r} gives the maps of the stages without out_norms: expected"
            " 'getter', or none"
        )
    return build_model_with_cfg(
        network,
        variant,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={"out_indices": (0, 1, 2, 3), "feature_cls": Pyramid, "flatten_sequential": True},
        config=override(config, kwargs),
        **kwargs,
    )


def _asks_the_network(kwargs: dict[str, Any]) -> bool:
    """Whether the pyramid is the network's own `forward_intermediates`, not the outputs of its stages."""
    kind = kwargs.get("feature_cls", Pyramid)
    if isinstance(kind, str):
        return kind.lower() == "getter"
    return isinstance(kind, type) and issubclass(kind, FeatureGetterNet)


def is_own(name: str) -> bool:
    """Whether a name of timm's registry is one of this library's networks."""
    return timm.is_model(name) and timm.model_entrypoint(name).__module__.startswith(f"{__package__}.")
