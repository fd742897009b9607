"""`Mamba`, the block of Gu and Dao 2024 (figure 3), with the parameters and arguments of `mamba_ssm`."""

from __future__ import annotations

import math
from typing import Any, Literal, NoReturn

import torch
from torch import Tensor, nn

from ..errors import unknown
from .mamba_inner import bimamba_inner_fn, mamba_inner_fn_no_out_proj

_BIMAMBA_TYPES = ("none", "v1", "v2", "v3")


class Mamba(nn.Module):
    """(B, L, d_model) -> (B, L, d_model). State dicts of `mamba_ssm.modules.mamba_simple.Mamba` load, and of the forks
    of it that Vision Mamba (Zhu et al. 2024, section 3.3) and SegMamba (Xing et al. 2024, section 2.2) carry along.

    d_state: N. d_conv: taps of the causal convolution, 2 to 4. expand: inner channels are expand * d_model.
    dt_rank: rank of the step sizes, ceil(d_model / 16) if "auto". dt_min, dt_max: step sizes at the beginning are
        log-uniform between them, at least dt_init_floor. dt_init, dt_scale: how their projection begins.
    conv_bias, bias: biases of the convolution and of the two outer projections.
    use_fast_path, layer_idx: accepted; there is one path, and no cache.
    bimamba_type: of the forks. "v1" scans the convolved sequence from its end too, by an A of its own (`A_b_log`).
        "v2" adds a branch with parameters of its own (`conv1d_b` ...) over the reversed sequence. "v3" adds to that a
        third (`conv1d_s` ...), over the sequence whose `nslices` equal parts are interleaved.
    nslices: of "v3"; L is a multiple of it.
    if_divide_out, which older releases spell if_devide_out: of "v2"; the mean of the two branches, not their sum.
    init_layer_scale: where it is given, the output is scaled by a parameter `gamma` (d_model,) that begins there.

    Only whole sequences are served: a cache for steps is refused (NotImplementedError).
    """

    conv1d: nn.Conv1d
    x_proj: nn.Linear
    dt_proj: nn.Linear
    A_log: nn.Parameter
    A_b_log: nn.Parameter
    D: nn.Parameter

    def __init__(
        self,
        d_model: int,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        dt_rank: int | Literal["auto"] = "auto",
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        dt_init: Literal["random", "constant"] = "random",
        dt_scale: float = 1.0,
        dt_init_floor: float = 1e-4,
        conv_bias: bool = True,
        bias: bool = False,
        use_fast_path: bool = True,
        layer_idx: int | None = None,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        bimamba_type: Literal["none", "v1", "v2", "v3"] = "none",
        nslices: int = 5,
        if_divide_out: bool = False,
        if_devide_out: bool = False,
        init_layer_scale: float | None = None,
    ):
        super().__init__()
        if bimamba_type not in _BIMAMBA_TYPES:
            raise ValueError(unknown("bimamba_type", bimamba_type, _BIMAMBA_TYPES))
        if dt_init not in ("random", "constant"):
            raise ValueError(f"dt_init is {dt_init!r}: expected 'random' or 'constant'")
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        self.d_model: int = d_model
        self.d_state: int = d_state
        self.d_conv: int = d_conv
        self.expand: int = expand
        self.d_inner: int = int(expand * d_model)
        self.dt_rank: int = math.ceil(d_model / 16) if dt_rank == "auto" else dt_rank
        self.use_fast_path: bool = use_fast_path
        self.layer_idx: int | None = layer_idx

        self.bimamba_type = bimamba_type
        self.nslices: int = nslices
        self.if_divide_out: bool = if_divide_out or if_devide_out
        self.conv_bias = conv_bias
        self.gamma: nn.Parameter | None = (
            None if init_layer_scale is None else nn.Parameter(torch.full((d_model,), init_layer_scale, **dd))
        )

        self.in_proj: nn.Linear = nn.Linear(d_model, 2 * self.d_inner, bias=bias, **dd)
        self._add_branch("", dd)
        self._reset_steps(dt_min, dt_max, dt_init, dt_scale, dt_init_floor)
        if bimamba_type == "v1":
            self._add_decay("_b", device)
        for suffix in {"v2": ("_b",), "v3": ("_b", "_s")}.get(bimamba_type, ()):
            self._add_branch(suffix, dd)
        self.out_proj: nn.Linear = nn.Linear(self.d_inner, d_model, bias=bias, **dd)

    def _add_branch(self, suffix: str, dd: dict[str, Any]) -> None:
        """The parameters of one scan, under the names that state dicts have."""
        self.add_module(
            f"conv1d{suffix}",
            nn.Conv1d(
                self.d_inner,
                self.d_inner,
                self.d_conv,
                groups=self.d_inner,
                padding=self.d_conv - 1,
                bias=self.conv_bias,
                **dd,
            ),
        )
        self.add_module(
            f"x_proj{suffix}", nn.Linear(self.d_inner, self.dt_rank + 2 * self.d_state, bias=False, **dd)
        )
        self.add_module(f"dt_proj{suffix}", nn.Linear(self.dt_rank, self.d_inner, **dd))
        self._add_decay(suffix, dd["device"])
        skip = nn.Parameter(torch.ones(self.d_inner, device=dd["device"]))
        setattr(skip, "_no_weight_decay", True)  # noqa: B010  as training code looks for it
        self.register_parameter(f"D{suffix}", skip)

    def _add_decay(self, suffix: str, device: Any) -> None:
        states = torch.arange(1, self.d_state + 1, dtype=torch.float32, device=device)
        A_log = nn.Parameter(states.log().repeat(self.d_inner, 1))
        setattr(A_log, "_no_weight_decay", True)  # noqa: B010  likewise
        self.register_parameter(f"A{suffix}_log", A_log)

    @torch.no_grad()
    def _reset_steps(self, dt_min: float, dt_max: float, dt_init: str, dt_scale: float, floor: float) -> None:
        bound = dt_scale * self.dt_rank**-0.5
        if dt_init == "constant":
            nn.init.constant_(self.dt_proj.weight, bound)
        else:
            nn.init.uniform_(self.dt_proj.weight, -bound, bound)
        dt = torch.empty_like(self.dt_proj.bias, dtype=torch.float32)
        dt = dt.uniform_(math.log(dt_min), math.log(dt_max)).exp().clamp(min=floor)
        self.dt_proj.bias.copy_(dt + torch.log(-torch.expm1(-dt)))  # softplus undone
        setattr(self.dt_proj.bias, "_no_reinit", True)  # noqa: B010  as model code looks for it

    def forward(self, hidden_states: Tensor, inference_params: object = None) -> Tensor:
        """hidden_states: (B, L, d_model)."""
        if inference_params is not None:
            self._refuse_steps()
        xz = self.in_proj(hidden_states).mT
        if self.bimamba_type == "v1":
            out = self._both_ways(xz)
        else:
            y = self._branch(xz, "")
            if self.bimamba_type != "none":
                y = y + self._branch(xz.flip(-1), "_b").flip(-1)
            if self.bimamba_type == "v3":
                y = y + self._between_slices(xz)
            if self.bimamba_type == "v2" and self.if_divide_out:
                y = y / 2
            out = self.out_proj(y.mT)
        return out if self.gamma is None else out * self.gamma

    def _branch(self, xz: Tensor, suffix: str) -> Tensor:
        """(B, 2 * d_inner, L) -> (B, d_inner, L) by the parameters of that suffix."""
        conv1d, x_proj, dt_proj = (getattr(self, name + suffix) for name in ("conv1d", "x_proj", "dt_proj"))
        return mamba_inner_fn_no_out_proj(
            xz,
            conv1d.weight,
            conv1d.bias,
            x_proj.weight,
            dt_proj.weight,
            -torch.exp(getattr(self, f"A{suffix}_log").float()),
            D=getattr(self, f"D{suffix}").float(),
            delta_bias=dt_proj.bias.float(),
        )

    def _both_ways(self, xz: Tensor) -> Tensor:
        return bimamba_inner_fn(
            xz,
            self.conv1d.weight,
            self.conv1d.bias,
            self.x_proj.weight,
            self.dt_proj.weight,
            self.out_proj.weight,
            self.out_proj.bias,
            -torch.exp(self.A_log.float()),
            -torch.exp(self.A_b_log.float()),
            D=self.D.float(),
            delta_bias=self.dt_proj.bias.float(),
        )

    def _between_slices(self, xz: Tensor) -> Tensor:
        """The third branch of "v3": position p of every slice, then position p + 1 of every slice."""
        if xz.shape[-1] % self.nslices:
            raise ValueError(
                f"the sequence has {xz.shape[-1]} positions: bimamba_type 'v3' expects a multiple of "
                f"nslices, {self.nslices}"
            )
        sliced = xz.unflatten(-1, (self.nslices, -1))
        y = self._branch(sliced.mT.flatten(-2), "_s")
        return y.unflatten(-1, (-1, self.nslices)).mT.flatten(-2)

    def step(self, hidden_states: Tensor, conv_state: Tensor, ssm_state: Tensor) -> NoReturn:
        self._refuse_steps()

    def allocate_inference_cache(
        self, batch_size: int, max_seqlen: int, dtype: torch.dtype | None = None, **_: object
    ) -> NoReturn:
        self._refuse_steps()

    def _refuse_steps(self) -> NoReturn:
        raise NotImplementedError(
            "ganglion's Mamba computes whole sequences: step-wise inference (inference_params, step, "
            "allocate_inference_cache) is not served. Call it with the whole sequence"
        )
