"""Networks of other families, written as their authors usually write them, on the stand-ins: equal to the loop."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ganglion.compat import mamba_ssm as compat
from ganglion.ops import selective_scan_reference


@pytest.fixture(autouse=True)
def installed():
    compat.install()
    yield
    compat.uninstall()


class CrossScanMixer(nn.Module):
    """Four walks over the image by one call of `selective_scan_fn`, as U-shaped VMamba networks do."""

    def __init__(self, dim: int, scan, d_state: int = 4):
        super().__init__()
        self.inner, self.rank, self.state, self.scan = 2 * dim, math.ceil(dim / 16), d_state, scan
        self.in_proj = nn.Linear(dim, 2 * self.inner, bias=False)
        self.conv = nn.Conv2d(self.inner, self.inner, 3, padding=1, groups=self.inner)
        self.x_proj = nn.Parameter(torch.randn(4, self.rank + 2 * d_state, self.inner) * self.inner**-0.5)
        self.dt_proj = nn.Parameter(torch.randn(4, self.inner, self.rank) * self.rank**-0.5)
        self.dt_bias = nn.Parameter(torch.randn(4, self.inner) - 3)
        self.A_log = nn.Parameter(torch.arange(1.0, d_state + 1).log().repeat(4 * self.inner, 1))
        self.D = nn.Parameter(torch.ones(4 * self.inner))
        self.norm = nn.LayerNorm(self.inner)
        self.out_proj = nn.Linear(self.inner, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:  # (B, H, W, C)
        x, z = self.in_proj(x).chunk(2, dim=-1)
        x = F.silu(self.conv(x.permute(0, 3, 1, 2)))
        B, _, H, W = x.shape
        two = torch.stack([x.flatten(2), x.transpose(2, 3).flatten(2)], dim=1)
        xs = torch.cat([two, two.flip(-1)], dim=1)  # (B, 4, D, L)
        dt, Bs, Cs = torch.einsum("b k d l, k c d -> b k c l", xs, self.x_proj).split(
            [self.rank, self.state, self.state], dim=2
        )
        dt = torch.einsum("b k r l, k d r -> b k d l", dt, self.dt_proj)
        y = self.scan(
            xs.float().view(B, -1, H * W), dt.contiguous().float().view(B, -1, H * W),
            -torch.exp(self.A_log.float()).view(-1, self.state), Bs.float(), Cs.float(), self.D.float().view(-1),
            z=None, delta_bias=self.dt_bias.float().view(-1), delta_softplus=True, return_last_state=False,
        ).view(B, 4, -1, H * W)  # fmt: skip
        y = y[:, :2] + y[:, 2:].flip(-1)
        y = y[:, 0] + y[:, 1].view(B, -1, W, H).transpose(2, 3).flatten(2)
        y = self.norm(y.transpose(1, 2).reshape(B, H, W, -1))
        return self.out_proj(y * F.silu(z))


class UNet(nn.Module):
    """Two levels down, two up, a skip between; (B, 3, H, W) -> (B, classes, H, W)."""

    def __init__(self, scan, classes: int = 3, dim: int = 8):
        super().__init__()
        self.embed = nn.Conv2d(3, dim, 4, stride=4)
        self.first, self.below, self.last = (CrossScanMixer(d, scan) for d in (dim, 2 * dim, dim))
        self.down, self.up = nn.Linear(4 * dim, 2 * dim), nn.Linear(2 * dim, 4 * dim)
        self.head = nn.Linear(dim, 16 * classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).permute(0, 2, 3, 1)
        skip = x + self.first(x)
        x = self.down(F.pixel_unshuffle(skip.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1))
        x = x + self.below(x)
        x = F.pixel_shuffle(self.up(x).permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1) + skip
        x = self.head(x + self.last(x))
        return F.pixel_shuffle(x.permute(0, 3, 1, 2), 4)


class BidirectionalBlock(nn.Module):
    """A token block that scans both ways through the fused inner function, as Vision Mamba does."""

    def __init__(self, dim: int, inner_fn, d_state: int = 4):
        super().__init__()
        inner, rank = 2 * dim, math.ceil(dim / 16)
        self.inner_fn = inner_fn
        self.norm, self.in_proj = nn.LayerNorm(dim), nn.Linear(dim, 2 * inner, bias=False)
        self.out_proj = nn.Linear(inner, dim, bias=False)
        self.ways = nn.ModuleList()
        for _ in range(2):
            way = nn.Module()
            way.conv1d = nn.Conv1d(inner, inner, 4, groups=inner, padding=3)
            way.x_proj, way.dt_proj = nn.Linear(inner, rank + 2 * d_state, bias=False), nn.Linear(rank, inner)
            way.A_log = nn.Parameter(torch.arange(1.0, d_state + 1).log().repeat(inner, 1))
            way.D = nn.Parameter(torch.ones(inner))
            self.ways.append(way)

    def forward(self, x: Tensor) -> Tensor:
        xz = self.in_proj(self.norm(x)).transpose(1, 2)
        outs = []
        for i, way in enumerate(self.ways):
            out = self.inner_fn(
                xz if i == 0 else xz.flip([-1]), way.conv1d.weight, way.conv1d.bias, way.x_proj.weight,
                way.dt_proj.weight, -torch.exp(way.A_log.float()), None, None, way.D.float(),
                delta_bias=way.dt_proj.bias.float(), delta_softplus=True,
            )  # fmt: skip
            outs.append(out if i == 0 else out.flip([-1]))
        return x + self.out_proj((outs[0] + outs[1]).transpose(1, 2))


def inner_by_the_loop(xz, conv, conv_bias, x_proj, dt_proj, A, B, C, D, delta_bias, delta_softplus) -> Tensor:
    x, z = xz.chunk(2, 1)
    x = F.silu(F.conv1d(x, conv, conv_bias, padding=3, groups=x.shape[1])[..., : x.shape[2]])
    low, B, C = (x.mT @ x_proj.T).split([dt_proj.shape[1], A.shape[1], A.shape[1]], dim=-1)
    return selective_scan_reference(x, (low @ dt_proj.T).mT, A, B.mT, C.mT, D, z, delta_bias, delta_softplus)


def scanning_networks(kind: str) -> tuple[nn.Module, nn.Module, Tensor]:
    """The network on the stand-ins, the same on the loop, and an input."""
    from mamba_ssm.ops.selective_scan_interface import (  # pyright: ignore
        mamba_inner_fn_no_out_proj,
        selective_scan_fn,
        selective_scan_ref,
    )

    torch.manual_seed(0)
    if kind == "unet":
        made, loop, x = UNet(selective_scan_fn), UNet(selective_scan_ref), torch.randn(2, 3, 32, 40)
    else:
        made, loop = (
            BidirectionalBlock(12, mamba_inner_fn_no_out_proj),
            BidirectionalBlock(12, inner_by_the_loop),
        )
        x = torch.randn(2, 33, 12)
    loop.load_state_dict(made.state_dict())
    return made, loop, x


@pytest.mark.parametrize("kind", ["unet", "bidirectional"])
def test_a_network_computes_and_trains_as_on_the_loop(kind):
    made, loop, x = scanning_networks(kind)
    outputs = [network(x) for network in (made, loop)]
    torch.testing.assert_close(*outputs, rtol=1e-5, atol=1e-5)
    for output in outputs:
        output.square().mean().backward()
    for (name, p), q in zip(made.named_parameters(), loop.parameters(), strict=True):
        scale = float(q.grad.abs().max())
        torch.testing.assert_close(
            p.grad, q.grad, rtol=1e-4, atol=2e-5 * scale, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_under_autocast_and_as_a_graph():
    made, loop, x = scanning_networks("unet")
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        torch.testing.assert_close(made(x), loop(x), rtol=0.05, atol=0.05)
    compiled = torch.compile(made, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), made(x))
