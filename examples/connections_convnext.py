"""SparX's connections and DMCA over blocks of your own: here plain ConvNeXt blocks."""

from __future__ import annotations

import torch
from timm.models.convnext import ConvNeXtBlock
from torch import Tensor, nn

from ganglion.layers.dmca import DMCA
from ganglion.models.backbone import Stage
from ganglion.models.connections import sparx


class GanglionConvNeXtBlock(nn.Module):
    """A ConvNeXt block; if it reads earlier features, DMCA mixes them into its input."""

    def __init__(self, dim: int, n_earlier: int):
        super().__init__()
        self.aggregate = DMCA(dim, n_earlier, dim, sr_ratio=2) if n_earlier else None
        self.block = ConvNeXtBlock(dim)

    def forward(self, x: Tensor | list[Tensor]) -> Tensor:
        x, *earlier = x if isinstance(x, list) else [x]
        if self.aggregate is not None:
            x = x + self.aggregate(x, earlier)
        return self.block(x)


if __name__ == "__main__":
    plan = sparx(depth=9, stride=2, window=3)
    stage = Stage(None, [GanglionConvNeXtBlock(96, len(read)) for read in plan.reads], plan)
    print("ganglions", plan.ganglions, "output", tuple(stage(torch.randn(2, 96, 14, 14)).shape))
