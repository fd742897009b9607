"""Weights in eight bits: a file of a quarter of the size that computes in float32."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

#: Weights of fewer numbers stay as they are: they add nothing to a file.
LEAST = 1024


class Int8Weight(nn.Module):
    """A weight as int8 (O, ...) and a float32 scale (O, 1, ...) of each output channel: w = scale * q."""

    def forward(self, q: Tensor, scale: Tensor) -> Tensor:
        return q.to(scale.dtype) * scale

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        largest = weight.abs().amax(tuple(range(1, weight.dim())), keepdim=True)
        scale = largest.clamp_min(torch.finfo(weight.dtype).tiny) / 127
        return torch.round(weight / scale).to(torch.int8), scale


def with_int8_weights(network: nn.Module) -> nn.Module:
    """A copy of a network whose linear layers and convolutions keep their weights in eight bits.

    Each output channel has its own scale, its largest weight is 127 (symmetric, rounded to nearest). What sets the
    scan's step sizes and decays stays in float32, `x_proj_weight`, `dt_projs_weight`, `A_logs`, `Ds`: an error there
    grows along the walk. So do biases, norms, and weights of fewer than `LEAST` numbers.
    """
    network = copy.deepcopy(network)
    for module in list(network.modules()):
        weight = module._parameters.get("weight")
        if isinstance(module, nn.Linear | nn.Conv2d) and weight is not None and weight.numel() >= LEAST:
            weight.requires_grad_(False)
            parametrize.register_parametrization(module, "weight", Int8Weight())
    return network
