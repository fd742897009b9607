"""`causal_conv1d_fn` and `causal_conv1d_update` with the arguments that their callers pass, and the two functions
of the extension `causal_conv1d_cuda`, which Python code of `mamba_ssm` calls itself.

The extension's arguments differ between its releases: after those that all have come `silu` (1.0), `seq_idx, silu`
(1.1) or `seq_idx, initial_states, final_states_out, silu` (since 1.2). Their number tells.
"""

from __future__ import annotations

from typing import Any

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
    not_served: Any = {"seq_idx": seq_idx, "final_states_out": final_states_out}  # refused there, by name
    return causal_conv1d(
        x,
        weight,
        bias,
        activation,
        initial_states=initial_states,
        return_final_states=return_final_states,
        **not_served,
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


@torch.no_grad()
def extension_fwd(x: Tensor, weight: Tensor, bias: Tensor | None, *others: Tensor | bool | None) -> Tensor:
    """`causal_conv1d_fwd` of the extension: (B, D, L). others: see this module's docstring. `final_states_out`, where
    it is given, is written."""
    silu = _silu("causal_conv1d_fwd", others, (1, 2, 4))
    found: tuple[Any, ...] = (*others[:-1], None, None, None)
    seq_idx, initial_states, final_states_out = found[:3]
    activation = "silu" if silu else None
    y, final = causal_conv1d(
        x,
        weight,
        bias,
        activation,
        initial_states=initial_states,
        return_final_states=True,
        seq_idx=seq_idx,  # refused there, by name
    )
    if isinstance(final_states_out, Tensor):
        final_states_out.copy_(final)
    return y


def extension_bwd(
    x: Tensor, weight: Tensor, bias: Tensor | None, dout: Tensor, *others: Tensor | bool | None
) -> list[Tensor | None]:
    """`causal_conv1d_bwd` of the extension: [dx, dweight, dbias], and the gradient of `initial_states` since 1.2.

    others: `dx, silu` (1.0), `seq_idx, dx, silu` (1.1) or `seq_idx, initial_states, dfinal_states, dx,
    return_dinitial_states, silu` (since 1.2). dx, where it is given, is written.
    """
    silu = _silu("causal_conv1d_bwd", others, (2, 3, 6))
    seq_idx: Any = None
    dx: Any = None
    initial_states = dfinal_states = None
    if len(others) == 6:
        seq_idx, initial_states, dfinal_states, dx = others[:4]
    else:
        *first, dx = others[:-1]
        seq_idx = first[0] if first else None
    leaves = [
        t.detach().requires_grad_() if isinstance(t, Tensor) else None
        for t in (x, weight, bias, initial_states)
    ]
    x_leaf, weight_leaf, bias_leaf, initial_leaf = leaves
    assert x_leaf is not None and weight_leaf is not None
    with torch.enable_grad():
        y, final = causal_conv1d(
            x_leaf,
            weight_leaf,
            bias_leaf,
            "silu" if silu else None,
            initial_states=initial_leaf,
            return_final_states=True,
            seq_idx=seq_idx,  # refused there, by name
        )
        outputs, grads = [y], [dout.to(y.dtype)]
        if isinstance(dfinal_states, Tensor):
            outputs, grads = [y, final], [*grads, dfinal_states]
        found = iter(torch.autograd.grad(outputs, [t for t in leaves if t is not None], grads))
    dx_found, dweight, dbias, dinitial = (None if t is None else next(found) for t in leaves)
    if isinstance(dx, Tensor):
        assert dx_found is not None
        dx_found = dx.copy_(dx_found)
    return [dx_found, dweight, dbias, dinitial] if len(others) == 6 else [dx_found, dweight, dbias]


def _silu(function: str, others: tuple[Tensor | bool | None, ...], counts: tuple[int, ...]) -> bool:
    """The last argument, after a look at how many there are."""
    if len(others) not in counts or not isinstance(others[-1], bool):
        raise TypeError(
            f"{function} has {len(others)} arguments after those that every release has: expected one of {counts}, "
            "the last of them a bool, `silu`"
        )
    return others[-1]
