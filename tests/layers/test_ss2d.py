from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from ganglion.layers.basic import make_norm
from ganglion.layers.block import Block
from ganglion.layers.mlp import GatedMlp, Mlp
from ganglion.layers.ss2d import SS2D
from ganglion.models.weight_names import to_ganglion
from tests.golden_data import at_slice, load, vector
from tests.tolerances import RELATIVE_RMS_COMPOSED, relative_rms

GOLDEN = load("vmamba/ss2d")
SCANS = {"v051d": "unidi", "v052d": "bidi", "v052dc": "cascade2d", "v052d3": "rot2d"}
OUT_NORMS = {
    "none": "none",
    "dwconv3": "dwconv3",
    "cnorm": "ln_dwconv3",
    "softmax": "softmax",
    "sigmoid": "sigmoid",
}
PREFIX = "layers.0.blocks.0."


def ss2d(
    d_model,
    forward_type,
    ssm_ratio,
    d_state,
    act_layer="silu",
    d_conv=3,
    conv_bias=True,
    dt_rank=None,
    **other,
):
    core, *suffixes = forward_type.split("_")
    out_norm = next((OUT_NORMS[s[2:]] for s in suffixes if s.startswith("on")), "ln")
    return SS2D(
        d_model,
        d_state=d_state,
        ssm_ratio=ssm_ratio,
        dt_rank=dt_rank,
        d_conv=max(d_conv, 0),
        conv_bias=conv_bias,
        gate="noz" not in suffixes,
        gate_act="nozact" not in suffixes,
        act=act_layer,
        out_act="oact" in suffixes,
        out_norm=out_norm,
        scan=SCANS.get(core, "cross2d"),
        bias=other.get("bias", False),
    )


def block(hidden_dim, forward_type, mlp_ratio, ssm_d_state=16, ssm_ratio=2.0, **other):
    mixer = mlp = None
    if ssm_ratio > 0:
        conv = {"d_conv": other.get("ssm_conv", 3), "conv_bias": other.get("ssm_conv_bias", True)}
        mixer = ss2d(hidden_dim, forward_type, ssm_ratio, ssm_d_state, other["act_layer"], **conv)
    if mlp_ratio > 0:
        mlp = (GatedMlp if other.get("gmlp") else Mlp)(hidden_dim, int(hidden_dim * mlp_ratio))
    return Block(
        hidden_dim,
        mixer=mixer,
        norm1=make_norm("ln", hidden_dim) if mixer else None,
        mlp=mlp,
        norm2=make_norm("ln", hidden_dim) if mlp else None,
        post_norm=other.get("post_norm", False),
    )


def build(case: str) -> tuple[nn.Module, dict[str, str]]:
    """The layer of a golden case with its weights, and the published name of each of our parameters."""
    meta = GOLDEN.case(case)
    is_block = meta["kind"] == "block"
    layer = (block if is_block else ss2d)(**meta["kwargs"])
    weights = GOLDEN.state_dict(case)
    lead = PREFIX if is_block else PREFIX + "op."
    names = to_ganglion(["patch_embed.0.weight", *(lead + name for name in weights)])
    strip = "stages.0.blocks.0." if is_block else "stages.0.blocks.0.mixer."
    ours = {names[lead + name].removeprefix(strip): name for name in weights}
    layer.load_state_dict(
        {our: weights[name].reshape(layer.get_parameter(our).shape) for our, name in ours.items()}
    )
    return layer, ours


@pytest.mark.filterwarnings("ignore:ganglion.*x is torch.float64")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", GOLDEN.cases())
def test_golden_output_and_gradients(case, dtype):
    meta = GOLDEN.case(case)
    layer, published = build(case)
    layer = layer.to(dtype)
    shape, first = meta["input_shape"], meta["kwargs"].get("channel_first", False)
    x = vector(shape, meta["input_seed"]).to(dtype)
    x = x if first else x.permute(0, 3, 1, 2)
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    y = layer(x) if meta["kind"] == "block" else layer(x, [])
    out = y if first else y.permute(0, 2, 3, 1)
    cotangent = vector(out.shape, meta["cotangent_seed"]).to(dtype)
    parameters = dict(layer.named_parameters())
    grad_x, *grads = torch.autograd.grad(out, [x, *parameters.values()], cotangent)
    bound = RELATIVE_RMS_COMPOSED[dtype]
    assert relative_rms(out, GOLDEN[f"{case}.out"]) <= bound
    grad_x = grad_x if first else grad_x.permute(0, 2, 3, 1)
    assert relative_rms(grad_x, GOLDEN[f"{case}.grad_in"]) <= bound
    for name, grad in zip(parameters, grads, strict=True):
        expected = GOLDEN[f"{case}.grad.{published[name]}"]
        assert relative_rms(at_slice(grad), expected) <= bound, name


@pytest.mark.parametrize("init", ["v0", "v1", "v2"])
def test_init_as_published(init):
    torch.manual_seed(0)
    layer = SS2D(256, d_state=4, ssm_init=init)
    dt = nn.functional.softplus(layer.dt_projs_bias)
    assert torch.equal(layer.Ds, torch.ones_like(layer.Ds))
    assert layer.x_proj_weight.abs().max() <= layer.d_inner**-0.5
    assert layer.x_proj_weight.std().item() == pytest.approx((layer.d_inner * 3) ** -0.5, rel=0.02)
    if init == "v0":
        assert layer.A_logs.exp()[7].tolist() == pytest.approx([1, 2, 3, 4])
        assert 1e-4 <= dt.min() and dt.max() <= 0.1001
        # Log-uniform in [1e-3, 0.1]: the mean of log10 is in the middle.
        assert dt.log10().mean().item() == pytest.approx(-2, abs=0.05)
        assert layer.dt_projs_weight.std().item() == pytest.approx((3 * layer.dt_rank) ** -0.5, rel=0.05)
    elif init == "v1":
        assert layer.A_logs.std().item() == pytest.approx(1, rel=0.05)
        assert layer.dt_projs_bias.std().item() == pytest.approx(0.1, rel=0.1)
    else:
        assert not layer.A_logs.any()
        for p in (layer.dt_projs_weight, layer.dt_projs_bias):  # uniform in [0, 0.1]
            assert p.min() >= 0 and p.max() <= 0.1
            assert p.mean().item() == pytest.approx(0.05, rel=0.05)
            assert p.std().item() == pytest.approx(0.1 * 12**-0.5, rel=0.05)


def test_half_precision_stays_near_float32():
    torch.manual_seed(0)
    layer = SS2D(32, d_conv=3)
    x = torch.randn(2, 32, 9, 7)
    exact = layer(x, [])
    half = layer.bfloat16()(x.bfloat16(), [])
    assert half.dtype == torch.bfloat16
    assert relative_rms(half, exact) < RELATIVE_RMS_COMPOSED[torch.bfloat16] / 2  # one mixer, not a network


def test_autocast_keeps_the_state_in_float32():
    torch.manual_seed(0)
    layer = SS2D(32)
    x = torch.randn(2, 32, 9, 7)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x, [])
    assert y.dtype == torch.bfloat16
    assert relative_rms(y, layer(x, [])) < RELATIVE_RMS_COMPOSED[torch.bfloat16] / 2


def test_rank_follows_the_width():
    assert SS2D(40).dt_rank == math.ceil(40 / 16)
    assert SS2D(40, dt_rank=7).dt_projs_weight.shape == (4, 80, 7)
