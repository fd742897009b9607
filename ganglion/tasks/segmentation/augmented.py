"""Test-time augmentation of segmentors: images at several scales, and mirrored, as published (mmsegmentation)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ...data import Ragged
from ...data.decode import Raw
from ...heads import Segmentor, multi_scale
from ..evaluation import TestTimeAugmentation
from ..pixels import resize, to_pixels
from .transforms import Resize

#: Of the images as they are in their files.
SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)


class MultiScale(nn.Module):
    """A segmentor over images as they are in their files, of 0 to 255: each at every scale, and mirrored.

    config: with mean and std. side: of short sides at scale 1; None: the images' own, as published.
    """

    def __init__(self, segmentor: Segmentor, config: Mapping[str, Any], side: int | None = None):
        super().__init__()
        self.segmentor: Segmentor = segmentor
        self._resize = Resize(dict(config))
        self._side = side

    def forward(self, images: Ragged | Tensor) -> list[Tensor]:
        """The classes' probabilities (C, h, w) of each image, at its own size."""
        weight = next(self.segmentor.parameters())
        found = []
        for image in images:
            scaled = [version[None].to(weight.device, weight.dtype) for version in self._versions(image)]
            found.append(multi_scale(self.segmentor, scaled, image.shape[1:])[0])
        return found

    def _versions(self, image: Tensor) -> list[Tensor]:
        pixels = image.cpu().to(torch.uint8)
        height, width = pixels.shape[1:]
        whole = 1.0 if self._side is None else self._side / min(height, width)
        factors = [whole * scale for scale in SCALES]
        return [
            self._resize.normalise(
                resize(pixels, (max(1, int(height * f + 0.5)), max(1, int(width * f + 0.5))))
            )
            for f in factors
        ]


def _unchanged(image: Raw, target: Any) -> tuple[Tensor, Any]:
    return to_pixels(image).float(), target


def test_time(segmentor: nn.Module, data_config: Mapping[str, Any]) -> TestTimeAugmentation | None:
    """That of a segmentor, at `SCALES` of the images' own size, or of a short side that is asked for."""
    if not isinstance(segmentor, Segmentor):
        return None

    def network(size: int | None) -> nn.Module:
        return MultiScale(segmentor, data_config, size).train(segmentor.training)

    scales = ", ".join(f"{scale:g}" for scale in SCALES)
    return TestTimeAugmentation(
        network=network, transform=_unchanged, description=f"at scales {scales} and mirrored"
    )
