"""SS2D: the 2-D selective scan as a mixer (VMamba, section 4.2)."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import check_choice
from ..ops import Route, pattern
from ..ops.dispatch import check_request
from ..ops.scan2d_op import scan_tokens
from .basic import Act, Device, DType, make_act, make_norm, to_map, to_tokens
from .depthwise import DepthwiseConv2d, convolve_and_activate
from .mixer import Mixer

torch.fx.wrap("to_map")
torch.fx.wrap("to_tokens")


Scan = Literal["cross2d", "unidi", "bidi", "rot2d", "cascade2d", "ssm", "bi_ssm"]
OutNorm = Literal["ln", "gn", "none", "dwconv3", "ln_dwconv3", "softmax", "sigmoid"]
SSMInit = Literal["v0", "v1", "v2"]

#: A cascade scan: lines of rows in both directions, then lines of columns in both directions.
_CASCADE = (
    Route(restart=True),
    Route(flip_cols=True, restart=True),
    Route(transpose=True, restart=True),
    Route(transpose=True, flip_rows=True, restart=True),
)


class SpatialSoftmax(nn.Module):
    """Softmax of every channel over the pixels."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(2).softmax(-1).unflatten(2, x.shape[2:])


def _make_out_norm(kind: OutNorm, channels: int, halves: bool, dd: dict[str, Any]) -> nn.Module:
    check_choice("norm after the scan", kind, OutNorm)
    if kind in ("ln", "gn"):
        return make_norm(kind, channels, halves=halves, **dd)
    if kind in ("dwconv3", "ln_dwconv3"):
        conv = DepthwiseConv2d(channels, 3, bias=False, **dd)
        return conv if kind == "dwconv3" else nn.Sequential(make_norm("ln", channels, **dd), conv)
    return {"none": nn.Identity, "softmax": SpatialSoftmax, "sigmoid": nn.Sigmoid}[kind]()


class SS2D(Mixer):
    """Projection, depthwise convolution, activation, scan along K routes, norm, projection.

    (B, dim, H, W) -> (B, dim, H, W), with D = int(ssm_ratio * dim) inner channels.

    d_state: N, states per channel. dt_rank: R, rank of the step sizes, ceil(dim / 16) if None.
    d_conv: kernel of the depthwise convolution, 0 for none. gate: multiply by act(z), z a second half of in_proj;
        gate_act=False: by z itself. act: after the convolution. out_act: a GELU after the norm.
    scan: a pattern of `ganglion.ops.PATTERNS`, or "cascade2d". bias: biases in the two projections.
    in_proj: an aggregator (`layers.aggregators`) in place of the input projection: how a ganglion layer reads earlier
        features (SparX, section 3.1).
    backend: of `ganglion.ops.scan2d`.

    Raises ValueError for an unknown name.
    """

    def __init__(
        self,
        dim: int,
        *,
        d_state: int = 1,
        ssm_ratio: float = 2.0,
        dt_rank: int | None = None,
        d_conv: int = 3,
        conv_bias: bool = True,
        gate: bool = False,
        gate_act: bool = True,
        act: Act = "silu",
        out_act: bool = False,
        out_norm: OutNorm = "ln",
        scan: Scan = "cross2d",
        bias: bool = False,
        ssm_init: SSMInit = "v0",
        in_proj: nn.Module | None = None,
        backend: str = "auto",
        device: Device = None,
        dtype: DType = None,
    ):
        check_choice("scan", scan, Scan)
        check_request(backend)
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        inner = int(ssm_ratio * dim)
        super().__init__(dim, inner * (2 if gate else 1), in_proj, bias=bias, **dd)
        self.d_inner: int = inner
        self.d_state: int = d_state
        self.dt_rank: int = dt_rank or math.ceil(dim / 16)
        self.gate: bool = gate
        self.backend: str = backend
        self.cascade: bool = scan == "cascade2d"
        self.routes: list[int] = [route.code for route in (_CASCADE if self.cascade else pattern(scan))]
        n_routes = len(self.routes)

        self.conv: DepthwiseConv2d | nn.Identity = (
            DepthwiseConv2d(inner, d_conv, bias=conv_bias, **dd) if d_conv > 0 else nn.Identity()
        )
        self.act: nn.Module = make_act(act)
        self.gate_act: nn.Module = make_act(act) if gate_act else nn.Identity()
        self.x_proj_weight: nn.Parameter = nn.Parameter(
            torch.empty(n_routes, self.dt_rank + 2 * d_state, inner, **dd)
        )
        self.dt_projs_weight: nn.Parameter = nn.Parameter(torch.empty(n_routes, inner, self.dt_rank, **dd))
        self.dt_projs_bias: nn.Parameter = nn.Parameter(torch.empty(n_routes, inner, **dd))
        self.A_logs: nn.Parameter = nn.Parameter(torch.empty(n_routes * inner, d_state, **dd))
        self.Ds: nn.Parameter = nn.Parameter(torch.empty(n_routes * inner, **dd))
        self.out_norm: nn.Module = _make_out_norm(out_norm, inner, not (gate or out_act), dd)
        self.out_act: nn.GELU | nn.Identity = nn.GELU() if out_act else nn.Identity()
        self.out_proj: nn.Linear = nn.Linear(inner, dim, bias=bias, **dd)
        self.reset_scan_parameters(ssm_init)

    def reset_scan_parameters(self, init: SSMInit = "v0") -> None:
        """Initialise the parameters of the scan: "v0" as Mamba, "v1" and "v2" as VMamba's studies.

        Raises ValueError for another name.
        """
        check_choice("initialisation of the scan", init, SSMInit)
        nn.init.uniform_(self.x_proj_weight, -(self.d_inner**-0.5), self.d_inner**-0.5)
        nn.init.ones_(self.Ds)
        with torch.no_grad():
            if init == "v0":
                nn.init.uniform_(self.dt_projs_weight, -(self.dt_rank**-0.5), self.dt_rank**-0.5)
                # dt is log-uniform in [1e-3, 0.1]; its bias is the inverse of softplus.
                dt = torch.empty_like(self.dt_projs_bias, dtype=torch.float32)
                dt = dt.uniform_(math.log(1e-3), math.log(0.1)).exp().clamp(min=1e-4)
                self.dt_projs_bias.copy_(dt + torch.log(-torch.expm1(-dt)))
                states = torch.arange(1, self.d_state + 1, device=self.A_logs.device, dtype=torch.float32)
                self.A_logs.copy_(states.log().expand_as(self.A_logs))
            elif init == "v1":
                for p in (self.A_logs, self.dt_projs_weight, self.dt_projs_bias):
                    p.normal_()
                self.dt_projs_weight.mul_(0.1)
                self.dt_projs_bias.mul_(0.1)
            else:
                self.A_logs.zero_()
                self.dt_projs_weight.uniform_(0, 0.1)
                self.dt_projs_bias.uniform_(0, 0.1)

    def forward(self, x: Tensor, earlier: list[Tensor]) -> Tensor:
        """x: (B, dim, H, W). earlier: the features a ganglion layer reads, each (B, dim, H, W)."""
        # One step a line: a map is given up as soon as the next is there.
        y = self.project(x, earlier)
        z: Tensor | None = None
        if self.gate:
            y, z = y.chunk(2, dim=2)
        done: Tensor | None = None
        if not torch.jit.is_scripting():
            done = convolve_and_activate(self.conv, self.act, to_map(y, x))
        if done is None:
            y = self.conv(to_map(y, x))
            y = self.act(to_tokens(y))
        else:
            y = to_tokens(done)
        height, width = x.shape[2], x.shape[3]
        if self.cascade:
            y = self._cascade_scan(y, height, width)
        else:
            weights: list[Tensor] = [self.x_proj_weight, self.dt_projs_weight, self.dt_projs_bias]
            weights += [self.A_logs, self.Ds]
            y = self._scan(y, height, width, weights, self.routes)
        y = self.out_norm(to_map(y, x))
        y = self.out_act(to_tokens(y))
        if z is not None:
            y = y * self.gate_act(z)
        return to_map(self.out_proj(y), x)

    def _scan(self, x: Tensor, height: int, width: int, weights: list[Tensor], routes: list[int]) -> Tensor:
        """The sum of some routes over x, (B, height * width, D). weights: those of the routes."""
        x_proj_weight, dt_projs_weight, dt_projs_bias, A_logs, Ds = weights
        proj = F.linear(x, x_proj_weight.flatten(0, 1))
        A_logs, Ds = A_logs.view(len(routes), self.d_inner, self.d_state), Ds.view(len(routes), self.d_inner)
        x = x.to(proj.dtype)
        if not torch.jit.is_scripting():
            return scan_tokens(
                x, proj, dt_projs_weight, dt_projs_bias, A_logs, Ds, routes, self.backend, height, width
            )
        size = [height, width]
        return torch.ops.ganglion.scan2d(
            x, proj, dt_projs_weight, dt_projs_bias, A_logs, Ds, routes, self.backend, size, True
        )[0]

    def _one_route(self, x: Tensor, height: int, width: int, route: int) -> Tensor:
        one = slice(route, route + 1)
        channels = slice(route * self.d_inner, (route + 1) * self.d_inner)
        weights = [self.x_proj_weight[one], self.dt_projs_weight[one], self.dt_projs_bias[one]]
        weights += [self.A_logs[channels], self.Ds[channels]]
        return self._scan(x, height, width, weights, self.routes[one])

    def _cascade_scan(self, x: Tensor, height: int, width: int) -> Tensor:
        """Rows, then columns, each in both directions and normalised first (VMamba, Table 5).

        The published network adds the backward pass in the order of its own walk: it is not turned around.
        """
        for route, axis in ((0, 2), (2, 1)):
            x = F.layer_norm(x, [self.d_inner])
            back = self._one_route(x, height, width, route + 1).unflatten(1, [height, width]).flip(axis)
            x = self._one_route(x, height, width, route) + back.flatten(1, 2)
        return x
