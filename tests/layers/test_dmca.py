"""DMCA's parts: shapes as published, and what each of them computes, against the formula."""

from __future__ import annotations

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.models import reparameterize_model
from torch import nn

import ganglion  # noqa: F401
from ganglion.layers.basic import to_map, to_tokens
from ganglion.layers.dmca import DMCA, ChannelAttention, Fusion, _all_groups


@pytest.mark.parametrize(("skip", "out_channels"), [(True, 16), (True, 17), (False, 16), (False, 17)])
def test_fusion_has_equal_groups_and_nothing_over_where_there_is_one(skip, out_channels):
    dmca = DMCA(8, 2, out_channels, sr_ratio=1, groups=4, skip=skip)
    parts = 3 if skip else 1
    shapes = {name: tuple(p.shape) for name, p in dmca.fusion.named_parameters()}
    assert shapes == {
        "0.weight": (parts * 8, 1, 3, 3),
        "0.bias": (parts * 8,),
        "2.weight": (out_channels // parts * parts, 8, 1, 1),
        "2.bias": (out_channels // parts * parts,),
    }
    x = torch.randn(2, 8, 5, 4).contiguous(memory_format=torch.channels_last)
    assert dmca.eval()(x, [x, 2 * x]).shape == (2, out_channels, 5, 4)


def test_channels_over_are_means_of_what_was_fused():
    fusion = Fusion(6, 20)  # three groups of six, two over
    y = fusion(torch.randn(1, 18, 3, 4).contiguous(memory_format=torch.channels_last))
    assert y.shape == (1, 20, 3, 4)
    torch.testing.assert_close(y[:, 18], y[:, :9].mean(1))
    torch.testing.assert_close(y[:, 19], y[:, 9:18].mean(1))


@pytest.mark.parametrize("learned_scale", [False, True])
def test_channel_attention_is_its_formula(learned_scale):
    """Every channel of v in a group, weighted by the softmax over the keys of the scaled scores."""
    attention = ChannelAttention(2, learned_scale=learned_scale)
    q, k = torch.randn(2, 2, 6, 2, 3, dtype=torch.float64)
    v = torch.randn(2, 6, 5, 4, dtype=torch.float64)
    scale = 6**-0.5 if attention.scale is None else attention.scale.item()
    q_, k_, v_ = (t.flatten(2).unflatten(1, (2, 3)) for t in (q, k, v))  # (B, groups, channels, pixels)
    weights = F.softmax(scale * q_ @ k_.mT, -1)  # (B, groups, query, key)
    expected = (weights @ v_).flatten(1, 2).unflatten(2, (5, 4))
    torch.testing.assert_close(torch.cat(attention(q, k, v), 1), expected)
    in_one = _all_groups(to_tokens(q) * scale, to_tokens(k), to_tokens(v), 2)  # what a GPU does
    torch.testing.assert_close(to_map(in_one, v), expected)


def test_all_groups_in_one_product_have_the_gradients_of_each():
    q, k = torch.randn(2, 2, 6, 8, dtype=torch.float64, requires_grad=True)
    v = torch.randn(2, 20, 8, dtype=torch.float64, requires_grad=True)
    y = torch.cat(ChannelAttention(4)(*(t.mT.unflatten(2, (2, -1)) for t in (q, k, v))), 1)
    expected = torch.autograd.grad(y.square().sum(), (q, k, v))
    found = torch.autograd.grad(_all_groups(q * 6**-0.5, k, v, 4).square().sum(), (q, k, v))
    torch.testing.assert_close(found, expected)


def test_batch_norms_fold_into_what_is_before_them(monkeypatch):
    """By timm's own function for it. Statistics and affine parameters are not those of a fresh network."""
    monkeypatch.setenv("GANGLION_BACKEND", "torch")  # which has float64
    network = timm.create_model("test_sparx_mamba").double()
    x = torch.randn(4, 3, 64, 64, dtype=torch.float64)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.normal_(module.bias)
    network(x)
    network.eval()
    folded = reparameterize_model(network)
    in_layers = [n for n, m in folded.named_modules() if isinstance(m, nn.BatchNorm2d) and "in_proj" in n]
    assert in_layers == [] and any(isinstance(m, nn.BatchNorm2d) for m in network.modules())
    torch.testing.assert_close(folded(x), network(x), rtol=1e-10, atol=1e-10)


def test_a_batch_norm_that_still_learns_is_not_folded():
    dmca = DMCA(8, 2, 16, sr_ratio=1)
    with pytest.raises(RuntimeError, match=r"eval\(\)"):
        dmca.v.fuse()


def operations(function) -> set[str]:
    """Names of the operators that a call runs."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as trace:
        function()
    return {event.key for event in trace.key_averages()}


@pytest.mark.parametrize(("parts", "out_channels"), [(3, 21), (3, 20), (1, 6)])
def test_fusion_of_tokens_is_that_of_channels_first_maps(parts, out_channels, monkeypatch):
    """Values and gradients of shuffle and grouped convolution as a formula; the map stays in channels-last memory."""
    fusion = Fusion(6, out_channels, parts=parts)
    x = torch.randn(2, 6 * parts, 4, 5).contiguous(memory_format=torch.channels_last)
    x.requires_grad_()
    y = fusion(x)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert "aten::_slow_conv2d_forward" not in operations(lambda: fusion(x))
    with torch.no_grad():
        torch.testing.assert_close(fusion(x), y.detach(), rtol=1e-5, atol=1e-6)
        assert fusion(x).is_contiguous(memory_format=torch.channels_last)
    given = (x, *fusion.parameters())
    grads = torch.autograd.grad(y.square().sum(), given)
    monkeypatch.setattr(Fusion, "_by_tokens", lambda self, x: False)
    expected = fusion(x)
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        grads, torch.autograd.grad(expected.square().sum(), given), rtol=1e-4, atol=1e-5
    )
