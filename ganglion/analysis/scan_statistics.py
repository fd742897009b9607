"""How far the scans of a network remember: steps until what entered the state has decayed to 1/e.

A route moves one pixel a step, so that these are pixels of the layer's map along the route. The papers do not have
this; whoever changes the resolution may want to know it: a memory in pixels is another part of a larger image.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ..ops import Route
from ..ops.attention import Walk
from .scans import layer_inputs, scan_layers, scans_of

#: Quantiles of the distribution that are reported.
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True, kw_only=True)
class MemoryLength:
    """One route of one layer.

    layer: the module's name. index, route: which of its routes. size: H and W of its map.
    stride: pixels of the image to one of the map, vertically.
    steps: memory length at each of `QUANTILES`, over steps, channels, states and images.
    beyond: fraction that lasts beyond the end of the route (of the line, if the route restarts at each).
    """

    layer: str
    index: int
    route: Route
    size: tuple[int, int]
    stride: float
    steps: tuple[float, ...]
    beyond: float

    @property
    def median(self) -> float:
        """In steps."""
        return self.steps[QUANTILES.index(0.5)]

    @property
    def lines(self) -> float:
        """The median in lines of the route: below 1 it remembers less than one row, or column."""
        return self.median / self.route.line(*self.size)


def scan_statistics(network: nn.Module, images: Tensor) -> list[MemoryLength]:
    """The memory lengths of every layer and route on images (B, 3, H, W), float32 or float64.

    All images go through the network at once. Raises ValueError for a network without scans.
    """
    layers, inputs = scan_layers(network), layer_inputs(network, images)
    found = []
    for name, (x, earlier) in inputs.items():
        index = 0
        for scan in scans_of(layers[name], x, earlier):
            walks = [scan.walks(image) for image in range(len(images))]
            for k, route in enumerate(scan.routes):
                lengths, beyond = zip(*(memory_lengths(of_image[k]) for of_image in walks), strict=True)
                steps = np.quantile(
                    torch.cat([t.flatten().float() for t in lengths]).cpu().numpy(), QUANTILES
                )
                found.append(
                    MemoryLength(
                        layer=name,
                        index=index,
                        route=route,
                        size=scan.size,
                        stride=images.shape[2] / scan.size[0],
                        steps=tuple(map(float, steps)),
                        beyond=float(torch.stack([b.double().mean() for b in beyond]).mean()),
                    )
                )
                index += 1
    return found


def memory_lengths(walk: Walk) -> tuple[Tensor, Tensor]:
    """(L, D, N): after how many steps exp(A sum dt) over the following steps is 1/e, float64, with parts of steps; and
    whether that is beyond the end of the route, where dt is taken to stay at the mean of the channel's.
    """
    lines = walk.dt.double().unflatten(0, (-1, walk.line)).movedim(2, 1)  # (lines, D, steps)
    count, channels, line = lines.shape
    until = lines.cumsum(-1)
    mean = walk.dt.double().mean(0)[None, :, None]
    here = torch.arange(line, device=until.device)
    before = torch.nn.functional.pad(until, (1, 0))
    lengths, outside = [], []
    for rate in walk.A.double().neg().T:
        goal = until + 1 / rate[:, None]
        step = torch.searchsorted(until, goal).clamp(max=line - 1)
        inside = step - 1 + (goal - before.gather(-1, step)) / lines.gather(-1, step)
        beyond = goal > until[..., -1:]
        after = line - 1 + (goal - until[..., -1:]) / mean
        lengths.append(torch.where(beyond, after, inside) - here)
        outside.append(beyond)

    def by_steps(parts: list[Tensor]) -> Tensor:
        return torch.stack(parts, -1).movedim(1, 2).reshape(count * line, channels, -1)

    return by_steps(lengths), by_steps(outside)
