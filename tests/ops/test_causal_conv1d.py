from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from ganglion.ops import causal_conv1d
from tests.tolerances import assert_close


def inputs(width=4, batch=2, channels=5, length=9, dtype=torch.float64) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "x": (batch, channels, length),
        "weight": (channels, width),
        "bias": (channels,),
        "initial_states": (batch, channels, width - 1),
    }
    return {
        name: torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
        for name, shape in shapes.items()
    }


def by_hand(x, weight, bias=None, activation=None, initial_states=None) -> Tensor:
    """One position after the other, in float64."""
    x, weight = x.double(), weight.double()
    width = weight.shape[1]
    before = x.new_zeros(*x.shape[:2], width - 1) if initial_states is None else initial_states.double()
    y = torch.zeros_like(x)
    for t in range(x.shape[2]):
        for tap in range(width):
            at = t - (width - 1 - tap)
            y[:, :, t] += weight[:, tap] * (x[:, :, at] if at >= 0 else before[:, :, at])
    y += 0 if bias is None else bias.double()[:, None]
    return y * torch.sigmoid(y) if activation else y


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("activation", [None, "silu", "swish"])
@pytest.mark.parametrize("width", [2, 3, 4])
def test_equals_the_sum_by_hand(width, activation, dtype):
    args = inputs(width, dtype=dtype)
    for names in (("x", "weight"), ("x", "weight", "bias"), tuple(args)):
        part = {name: args[name] for name in names}
        y = causal_conv1d(**part, activation=activation)
        assert y.dtype == dtype and y.is_contiguous()
        assert_close(y, by_hand(**part, activation=activation))


def test_takes_weights_of_another_precision():
    args = inputs(dtype=torch.bfloat16)
    args["weight"], args["bias"] = args["weight"].float() + 1e-3, args["bias"].float() + 1e-3
    y = causal_conv1d(**args)
    assert y.dtype == torch.bfloat16
    # Only the result was rounded.
    assert torch.equal(y, by_hand(**args).bfloat16())


def test_gradcheck():
    args = inputs(length=5)
    tensors = tuple(t.requires_grad_() for t in args.values())
    assert gradcheck(
        lambda *t: causal_conv1d(
            **dict(zip(args, t, strict=True)), activation="silu", return_final_states=True
        ),
        tensors,
    )


@pytest.mark.parametrize("cut", [0, 1, 2, 5, 9])
def test_a_sequence_may_be_convolved_in_pieces(cut):
    args = inputs()
    x = args.pop("x")
    y, final = causal_conv1d(x, **args, return_final_states=True)
    first, states = causal_conv1d(x[..., :cut], **args, return_final_states=True)
    second, last = causal_conv1d(x[..., cut:], **args | {"initial_states": states}, return_final_states=True)
    torch.testing.assert_close(torch.cat([first, second], dim=2), y)
    assert torch.equal(last, final)
    assert torch.equal(final, x[..., -3:])


@pytest.mark.parametrize("size", [{"batch": 0}, {"length": 0}])
def test_empty_inputs(size):
    args = {name: t.requires_grad_() for name, t in inputs(**size).items()}
    y = causal_conv1d(**args, activation="silu")
    assert y.shape == args["x"].shape
    grads = torch.autograd.grad(y.sum(), list(args.values()), allow_unused=True, materialize_grads=True)
    assert all(g.shape == t.shape and not g.any() for g, t in zip(grads, args.values(), strict=True))


def test_nan_reaches_the_next_positions_of_its_channel():
    x, weight, *_ = inputs(width=3).values()
    x[1, 2, 4] = float("nan")
    bad = causal_conv1d(x, weight).isnan()
    assert bad[1, 2, 4:7].all() and bad.sum() == 3


@pytest.mark.parametrize(
    ("name", "value", "error", "message"),
    [
        ("x", torch.zeros(5, 9), ValueError, r"x has shape \(5, 9\): expected \(B, D, L\)"),
        ("weight", torch.zeros(5, 5), ValueError, r"weight has shape \(5, 5\): expected \(5, W\), W of"),
        ("weight", torch.zeros(5, 1, 4), ValueError, r"weight has shape \(5, 1, 4\)"),
        ("weight", torch.zeros(6, 4), ValueError, r"weight has shape \(6, 4\): expected \(5, W\)"),
        ("bias", torch.zeros(1), ValueError, r"bias has shape \(1,\): expected \(5,\)"),
        ("initial_states", torch.zeros(2, 5, 4), ValueError, r"initial_states .*expected \(2, 5, 3\)"),
        ("activation", "gelu", ValueError, "unknown activation 'gelu'.*silu, swish"),
        ("seq_idx", torch.zeros(2, 9), NotImplementedError, "seq_idx is not served"),
        ("final_states_out", torch.zeros(2, 5, 3), NotImplementedError, "final_states_out is not served"),
    ],
)
def test_wrong_arguments_are_named(name, value, error, message):
    with pytest.raises(error, match=message):
        causal_conv1d(**inputs() | {name: value})
