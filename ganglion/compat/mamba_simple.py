"""`Mamba`, the block of Gu and Dao 2024 (figure 3), with the parameters and arguments of `mamba_ssm`."""

from __future__ import annotations

import math
from typing import Any, Literal, NoReturn

import torch
from torch import Tensor, nn

from .mamba_inner import mamba_inner_fn


class Mamba(nn.Module):
    """(B, L, d_model) -> (B, L, d_model). State dicts of `mamba_ssm.modules.mamba_simple.Mamba` load.

    d_state: N. d_conv: taps of the causal convolution, 2 to 4. expand: inner channels are expand * d_model.
    dt_rank: rank of the step sizes, ceil(d_model / 16) if "auto". dt_min, dt_max: step sizes at the beginning are
        log-uniform between them, at least dt_init_floor. dt_init, dt_scale: how their projection begins.
    conv_bias, bias: biases of the convolution and of the two outer projections.
    use_fast_path, layer_idx: accepted; there is one path, and no cache.

    Only whole sequences are served: a cache for steps is refused (NotImplementedError).
    """

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
        device=None,
        dtype=None,
    ):
        super().__init__()
        if dt_init not in ("random", "constant"):
            raise ValueError(f"dt_init is {dt_init!r}: expected 'random' or 'constant'")
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        self.d_model, self.d_state, self.d_conv, self.expand = d_model, d_state, d_conv, expand
        self.d_inner = int(expand * d_model)
        self.dt_rank = math.ceil(d_model / 16) if dt_rank == "auto" else dt_rank
        self.use_fast_path, self.layer_idx = use_fast_path, layer_idx

        self.in_proj = nn.Linear(d_model, 2 * self.d_inner, bias=bias, **dd)
        self.conv1d = nn.Conv1d(
            self.d_inner, self.d_inner, d_conv, groups=self.d_inner, padding=d_conv - 1, bias=conv_bias, **dd
        )
        self.x_proj = nn.Linear(self.d_inner, self.dt_rank + 2 * d_state, bias=False, **dd)
        self.dt_proj = nn.Linear(self.dt_rank, self.d_inner, **dd)
        states = torch.arange(1, d_state + 1, dtype=torch.float32, device=device)
        self.A_log = nn.Parameter(states.log().repeat(self.d_inner, 1))
        self.D = nn.Parameter(torch.ones(self.d_inner, device=device))
        for parameter in (self.A_log, self.D):
            parameter._no_weight_decay = True  # pyright: ignore[reportAttributeAccessIssue]  as training code looks for it
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=bias, **dd)
        self._reset_steps(dt_min, dt_max, dt_init, dt_scale, dt_init_floor)

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
        self.dt_proj.bias._no_reinit = True  # pyright: ignore[reportAttributeAccessIssue]  as model code looks for it

    def forward(self, hidden_states: Tensor, inference_params: object = None) -> Tensor:
        """hidden_states: (B, L, d_model)."""
        if inference_params is not None:
            self._refuse_steps()
        return mamba_inner_fn(
            self.in_proj(hidden_states).mT,
            self.conv1d.weight,
            self.conv1d.bias,
            self.x_proj.weight,
            self.dt_proj.weight,
            self.out_proj.weight,
            self.out_proj.bias,
            -torch.exp(self.A_log.float()),
            D=self.D.float(),
            delta_bias=self.dt_proj.bias.float(),
        )

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
