"""What all mixers share: an input projection, in whose place a ganglion layer has an aggregator."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.fx
from torch import Tensor, nn

from .basic import Device, DType, to_tokens

torch.fx.wrap("to_tokens")


class Mixer(nn.Module):
    """Base of the mixers, which are called with a map x, (B, dim, H, W), and a list of earlier features of that shape.

    in_proj: None for a linear layer from dim to `channels`, which reads x only, or an aggregator, called with x and the
    earlier features, which returns (B, channels, H, W) and says so in an attribute `out_channels`.

    Raises TypeError without that attribute and ValueError if it is not `channels`.
    """

    __constants__: ClassVar[tuple[str, ...]] = ("aggregates",)

    def __init__(
        self,
        dim: int,
        channels: int,
        in_proj: nn.Module | None,
        *,
        bias: bool = True,
        device: Device = None,
        dtype: DType = None,
    ):
        super().__init__()
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        self.aggregates: bool = in_proj is not None
        if in_proj is not None:
            found = getattr(in_proj, "out_channels", None)
            if found is None:
                name = type(in_proj).__name__
                raise TypeError(f"in_proj {name} has no attribute out_channels: expected {channels} there")
            if found != channels:
                raise ValueError(f"in_proj returns {found} channels, expected {channels}")
        self.in_proj: nn.Module = nn.Linear(dim, channels, bias=bias, **dd) if in_proj is None else in_proj

    def project(self, x: Tensor, earlier: list[Tensor]) -> Tensor:
        """x and the earlier features -> (B, H * W, channels)."""
        if self.aggregates:
            return to_tokens(self.in_proj(x, earlier))
        return self.in_proj(to_tokens(x))
