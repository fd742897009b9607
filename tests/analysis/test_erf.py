"""Receptive fields against golden data, finite differences, and fields that are known."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import timm
import torch
from torch import nn

import ganglion
from ganglion.analysis import contribution_squares, effective_receptive_field
from ganglion.analysis.erf import stage_features
from tests.analysis.networks import NAMES, golden_network
from tests.golden_data import image, load

BOUNDS = {torch.float64: 1e-7, torch.float32: 1e-5}


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("name", NAMES)
def test_golden(name, dtype):
    golden = load("analysis/erf")
    network = golden_network(name, "analysis/erf")
    images = image(3, 64, 80, seed=61).to(dtype)
    for stage in range(4):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = effective_receptive_field(network, images, stage)
        expected = golden[f"{name}.stage{stage + 1}"]
        assert found.dtype == dtype and found.shape == expected.shape
        assert (found.double() - expected).abs().max() <= BOUNDS[dtype] * expected.max()
        table = golden.meta["models"][name]["table"][f"stage{stage + 1}"]
        for square in contribution_squares(found):
            assert [square.side, square.area] == (table[str(square.fraction)] or [None, None])
    assert next(network.parameters()).dtype == torch.float32 and network.training


def test_the_published_field():
    """VMamba-T at 96 x 96, and its squares."""
    golden = load("vmamba/erf")
    network = timm.create_model("vmamba_tiny_s1l8")
    ganglion.load_checkpoint(network, load("vmamba/vmamba_tiny_s1l8").state_dict())
    found = effective_receptive_field(network, image(1, 96, 96, seed=21))
    expected = golden["erf_tiny_s1l8.map"]
    assert (found - expected).abs().max() <= 1e-5 * expected.max()
    for square in contribution_squares(found):
        assert [square.side, square.area] == golden.case("erf_tiny_s1l8")["rectangle"][str(square.fraction)]


def test_finite_differences():
    """Of a network that is no backbone, at a position that is not the centre, on a map of H != W."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(2, 3, 3, stride=2, padding=1), nn.Tanh(), nn.Conv2d(3, 4, 3)).double()
    x = torch.randn(2, 2, 9, 12, dtype=torch.float64)
    position = (0, 3)
    found = effective_receptive_field(network, iter([x]), position=position)

    def score(images):
        with torch.no_grad():
            return network(images)[:, :, 0, 3].relu().sum(1)

    expected = torch.zeros(2, 9, 12, dtype=torch.float64)
    for index in np.ndindex(2, 9, 12):
        step = torch.zeros_like(x[0])
        step[index] = 1e-6
        expected[:, *index[1:]] += ((score(x + step) - score(x - step)) / 2e-6).relu()
    torch.testing.assert_close(found, expected.mean(0), rtol=1e-7, atol=1e-9)
    assert contribution_squares(found, [0.5], centre=(1, 7))[0].largest == 3


def test_networks_of_timm():
    """Channels first, channels last, tokens with a class token; whole, and as features."""
    torch.manual_seed(0)
    x = torch.randn(1, 3, 64, 96)
    for name in ("test_resnet", "test_convnext", "test_vmamba", "swin_tiny_patch4_window7_224"):
        options = {"img_size": (64, 96)} if name.startswith("swin") else {}
        network = timm.create_model(name, **options).eval()
        features = timm.create_model(name, features_only=True, **options).eval()
        features.load_state_dict({f"model.{k}": v for k, v in network.state_dict().items()}, strict=False)
        features.load_state_dict(network.state_dict(), strict=False)
        shape = stage_features(network, x).shape
        assert shape[2:] == (2, 3) and shape == stage_features(features, x).shape
        field = effective_receptive_field(network, x)
        assert field.shape == (64, 96) and field.max() > 0
    deit = timm.create_model("deit_tiny_patch16_224", img_size=(64, 96), depth=2).eval()
    tokens = deit.blocks(deit.norm_pre(deit._pos_embed(deit.patch_embed(x))))
    torch.testing.assert_close(stage_features(deit, x)[0, :, 1, 2], tokens[0, 1 + 1 * 6 + 2])


class Tokens(nn.Module):
    """Tokens, or a map with channels last, of a convolution."""

    def __init__(self, form):
        super().__init__()
        self.conv, self.form, self.num_features = nn.Conv2d(3, 5, 3, padding=1), form, 5

    def forward_features(self, x):
        y = self.conv(x)
        return y.movedim(1, 3) if self.form == "NHWC" else y.flatten(2).mT


@pytest.mark.parametrize("form", ("NHWC", "NLC"))
def test_forms_of_features(form):
    network = Tokens(form)
    x = torch.randn(1, 3, 6, 9)
    torch.testing.assert_close(stage_features(network, x), network.conv(x))


def test_norms_on_the_maps_and_heads_are_left_out():
    network = timm.create_model("test_vmamba", features_only=True, out_norms=True).eval()
    plain = timm.create_model("test_vmamba").eval()
    plain.load_state_dict(
        {k.removeprefix("model."): v for k, v in network.state_dict().items()}, strict=False
    )
    x = torch.randn(1, 3, 64, 64)
    expected = plain.forward_intermediates(x, intermediates_only=True)
    for stage in range(4):
        torch.testing.assert_close(stage_features(network, x, stage), expected[stage])


def test_images_that_are_not_finite_are_skipped_and_counted():
    network = nn.Conv2d(1, 2, 3, padding=1)
    images = torch.randn(3, 1, 5, 5)
    broken = images.clone()
    broken[1] = float("nan")

    class Echo(nn.Module):
        def forward(self, x):
            return network(x) * x.square()

    with torch.inference_mode():
        effective_receptive_field(network, images)
    with pytest.warns(UserWarning, match="1 of 3 images were skipped"):
        found = effective_receptive_field(Echo(), broken)
    torch.testing.assert_close(found, effective_receptive_field(Echo(), images[[0, 2]]))
    with pytest.raises(ValueError, match="all 1 images"):
        effective_receptive_field(Echo(), broken[1:2])


def test_squares():
    field = torch.zeros(7, 11)
    field[3, 5], field[3, 7], field[0, 0] = 1.0, 2.0, 1.0
    found = contribution_squares(field, (0.2, 0.5, 0.74, 0.75))
    assert [s.side for s in found] == [1, 5, 5, None] and {s.largest for s in found} == {7}
    assert found[1].area == 25 / 77
    assert contribution_squares(torch.zeros(5, 5))[0].side is None


def test_bad_input():
    network = timm.create_model("test_vmamba")
    x = torch.randn(1, 3, 64, 64)
    with pytest.raises(IndexError, match=r"stage 4: the network has 4"):
        effective_receptive_field(network, x, 4)
    with pytest.raises(IndexError, match=r"position \(2, 0\): the map of stage -1 has 2 x 2"):
        effective_receptive_field(network, x, position=(2, 0))
    with pytest.raises(ValueError, match=r"expected \(B, C, H, W\)"):
        effective_receptive_field(network, x[0])
    with pytest.raises(ValueError, match="at least one image"):
        effective_receptive_field(network, [])
    with pytest.raises(TypeError, match="float16"):
        effective_receptive_field(network, x.half())
    with pytest.raises(ValueError, match="one size for all"):
        effective_receptive_field(network, [x, x[..., :32]])
    with pytest.raises(TypeError, match=r"shape \(1, 10\): expected a map"):
        effective_receptive_field(nn.Sequential(nn.Flatten(), nn.Linear(12, 10)), torch.randn(1, 3, 2, 2))
    assert network.training and all(p.requires_grad for p in network.parameters())
