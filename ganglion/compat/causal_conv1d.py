"""`causal_conv1d_fn` and `causal_conv1d_update` with the arguments that their callers pass."""

from __future__ import annotations

import torch
from torch import Tensor

from ..ops import causal_conv1d


def causal_conv1d_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    seq_idx: Tensor | str | None = None,
    initial_states: Tensor | None = None,
    return_final_states: bool = False,
    final_states_out: Tensor | None = None,
    activation: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """`ganglion.ops.causal_conv1d`. Releases before 1.2 took the activation as the fourth argument: so does this."""
    if isinstance(seq_idx, str):
        seq_idx, activation = None, seq_idx
    return causal_conv1d(
        x,
        weight,
        bias,
        activation,
        initial_states=initial_states,
        return_final_states=return_final_states,
        seq_idx=seq_idx,  # pyright: ignore[reportArgumentType]  refused there, by name
        final_states_out=final_states_out,  # pyright: ignore[reportArgumentType]  likewise
    )


def causal_conv1d_update(
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    cache_seqlens: Tensor | None = None,
) -> Tensor:
    """The convolution of further positions x, (B, D) or (B, D, L), after those in `conv_state` (B, D, S), S >= W - 1,
    which is brought up to date in place. cache_seqlens, a circular state, is not served (NotImplementedError)."""
    if cache_seqlens is not None:
        raise NotImplementedError("cache_seqlens is not served: keep the state in the order of its positions")
    before = weight.shape[1] - 1
    if conv_state.ndim != 3 or conv_state.shape[2] < before:
        raise ValueError(
            f"conv_state has shape {tuple(conv_state.shape)}: expected (B, D, S) with S >= {before} for weight "
            f"{tuple(weight.shape)}"
        )
    x_BDL = x[..., None] if x.ndim == 2 else x
    last = conv_state[..., conv_state.shape[2] - before :]
    y = causal_conv1d(x_BDL, weight, bias, activation, initial_states=last)
    assert isinstance(y, Tensor)
    with torch.no_grad():
        conv_state.copy_(torch.cat([conv_state, x_BDL.to(conv_state)], dim=2)[..., -conv_state.shape[2] :])
    return y[..., 0] if x.ndim == 2 else y
