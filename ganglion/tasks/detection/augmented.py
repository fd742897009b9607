"""Test-time augmentation of detectors: images at several scales, and mirrored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ...data import Ragged
from ...data.decode import Raw
from ...heads import MaskRCNN, detect_multi_scale
from ..evaluation import TestTimeAugmentation
from .transforms import Resize, new_size, resize, to_pixels

#: Of the sides that the network was trained with.
SCALES = (0.5, 1.0, 1.5)


class MultiScale(nn.Module):
    """A detector over images as they are in their files, of 0 to 255: each at every scale, and mirrored.

    config: with input_size (channels, short, long side), mean and std.
    """

    def __init__(self, detector: MaskRCNN, config: Mapping[str, Any]):
        super().__init__()
        self.detector: MaskRCNN = detector
        self._resize = Resize(dict(config))

    def forward(self, images: Ragged) -> list[dict[str, Tensor]]:
        own = images.sizes or [(image.shape[1], image.shape[2]) for image in images]
        weight = next(self.detector.parameters())
        return [
            detect_multi_scale(
                self.detector, [v.to(weight.device, weight.dtype) for v in self._versions(image)], size
            )
            for image, size in zip(images, own, strict=True)
        ]

    def _versions(self, image: Tensor) -> list[Tensor]:
        pixels = image.cpu().to(torch.uint8)
        short, long = self._resize.short_side, self._resize.long_side
        sizes = [new_size(pixels.shape[1:], round(s * long), round(s * short)) for s in SCALES]
        return [self._resize.normalise(resize(pixels, size)) for size in sizes]


def _unchanged(image: Raw, target: Any) -> tuple[Tensor, Any]:
    return to_pixels(image).float(), target


def test_time(detector: nn.Module, data_config: Mapping[str, Any]) -> TestTimeAugmentation | None:
    """That of a detector, at `SCALES` of the sides in its `data_config`."""
    if not isinstance(detector, MaskRCNN):
        return None

    def network(size: int | None) -> nn.Module:
        return MultiScale(detector, at_side(data_config, size)).train(detector.training)

    scales = ", ".join(f"{scale:g}" for scale in SCALES)
    return TestTimeAugmentation(
        network=network, transform=_unchanged, description=f"at scales {scales} and mirrored"
    )


def at_side(data_config: Mapping[str, Any], side: int | None) -> dict[str, Any]:
    """data_config with another short side, and the long side that belongs to it; with its own for None."""
    config = dict(data_config)
    if side is not None:
        channels, short, long = config["input_size"]
        config["input_size"] = [channels, side, round(side * long / short)]
    return config
