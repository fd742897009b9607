"""Similarity of layers against golden data, another formula, and what is known of it."""

from __future__ import annotations

import warnings

import pytest
import timm
import torch
from torch import Tensor, nn

from ganglion.analysis import layer_names, layer_similarity, mean_off_diagonal
from tests.analysis.networks import NAMES, golden_network
from tests.golden_data import image, load

GOLDEN = "analysis/cka"
BOUNDS = {torch.float64: 1e-8, torch.float32: 1e-5}


class Stored(nn.Module):
    """Gives stored features for images that hold their numbers."""

    def __init__(self, *layers: Tensor):
        super().__init__()
        self.stored = layers
        for i in range(len(layers)):
            self.add_module(f"layer{i}", nn.Identity())

    def forward(self, x: Tensor) -> Tensor:
        index = x.flatten(1)[:, 0].long()
        for i, features in enumerate(self.stored):
            getattr(self, f"layer{i}")(features[index])
        return x


def numbered(n: int, dtype=torch.float64) -> Tensor:
    return torch.arange(n, dtype=dtype)[:, None, None, None]


@pytest.fixture(scope="module")
def networks():
    return {name: golden_network(name, GOLDEN) for name in NAMES}


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("features", ("scan", "mixer", "block"))
def test_golden(networks, features, dtype):
    golden = load(GOLDEN)
    batches = image(20, 96, 96, seed=31).to(dtype).split(8)
    for one, other in ((NAMES[0], NAMES[0]), (NAMES[0], NAMES[1]), (NAMES[1], NAMES[1])):
        if dtype == torch.float64 and one == other and features != "mixer":
            continue  # float64 runs on the slower backend; the rectangle has both networks
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = layer_similarity(
                networks[one], batches, features, None if one == other else networks[other]
            )
        expected = golden[f"{features}.{one}.{other}.cka"]
        assert found.shape == expected.shape and found.dtype == torch.float64
        assert (found - expected).abs().max() <= BOUNDS[dtype]
    for name in NAMES:
        blocks = golden.meta["networks"]["layers"][name]
        suffix = {"scan": ".mixer.out_norm", "mixer": ".mixer", "block": ""}[features]
        assert layer_names(networks[name], features) == [block + suffix for block in blocks]


@pytest.mark.parametrize("size", load(GOLDEN).meta["small"]["batch_sizes"])
def test_stored_features(size):
    """With a last batch that is shorter, and in fours one that is too short, for which the golden data have NaN."""
    golden = load(GOLDEN)
    network = Stored(*(golden[f"small.layer{i}"].double() for i in range(4)))
    names = [f"layer{i}" for i in range(4)]
    batches = [batch for batch in numbered(22).split(size) if len(batch) >= 4]
    found = layer_similarity(network, batches, names)
    if size != 4:
        assert (found - golden[f"small.batch{size}.cka"]).abs().max() <= 1e-8
    else:
        with pytest.warns(UserWarning, match=r"1 of 6 batches were dropped.*they had 2"):
            assert torch.equal(layer_similarity(network, numbered(22).split(4), names), found)


def test_the_sum_of_song_et_al():
    """HSIC_1 as the definition prints it; and that large means cost nothing in float32."""
    generator = torch.Generator().manual_seed(3)
    a, b = (torch.randn(9, n, generator=generator, dtype=torch.float64) for n in (6, 4))

    def hsic(x: Tensor, y: Tensor) -> Tensor:
        n, one = len(x), torch.ones(len(x), dtype=torch.float64)
        K, L = ((t @ t.T).fill_diagonal_(0) for t in (x, y))
        return (
            (K @ L).trace()
            + (one @ K @ one) * (one @ L @ one) / ((n - 1) * (n - 2))
            - 2 / (n - 2) * (one @ K @ L @ one)
        ) / (n * (n - 3))

    expected = hsic(a, b) / (hsic(a, a) * hsic(b, b)).sqrt()
    found = layer_similarity(Stored(a, b), numbered(9), ["layer0", "layer1"])
    torch.testing.assert_close(found[0, 1], expected)
    torch.testing.assert_close(found.diagonal(), torch.ones(2, dtype=torch.float64))
    lifted = Stored(a.float() + 100, b.float() + 100)
    found = layer_similarity(lifted, [numbered(9, torch.float32)], ["layer0", "layer1"])
    assert abs(found[0, 1] - expected) < 1e-4
    rotation = torch.linalg.qr(torch.randn(6, 6, generator=generator, dtype=torch.float64))[0]
    alike = layer_similarity(Stored(a, 3 * a @ rotation), [numbered(9)], ["layer0", "layer1"])
    torch.testing.assert_close(alike, torch.ones(2, 2, dtype=torch.float64))


@pytest.mark.parametrize(
    ("name", "features", "count"),
    (("test_resnet", "block", 4), ("test_vit", "mixer", 6), ("test_convnext", ["stages.0", "stages.1"], 2)),
)
def test_networks_of_timm(name, features, count):
    network = timm.create_model(name)
    size = network.pretrained_cfg["input_size"][1:]
    found = layer_similarity(network, [torch.randn(5, 3, *size)], features)
    assert found.shape == (count, count) and found.isfinite().all() and network.training
    torch.testing.assert_close(found.diagonal(), torch.ones(count, dtype=torch.float64))


def test_mean_off_diagonal():
    assert mean_off_diagonal(torch.tensor([[1.0, 0.2], [0.4, 1.0]])) == pytest.approx(0.3)
    with pytest.raises(ValueError, match=r"\(2, 3\)"):
        mean_off_diagonal(torch.zeros(2, 3))


def test_bad_input(networks):
    network = networks["test_vmamba"]
    x = torch.randn(4, 3, 32, 32)
    with pytest.raises(ValueError, match=r"batches of 1 images.*at least 4"):
        layer_similarity(network, [x[:1]])
    with pytest.raises(ValueError, match="at least one image"):
        layer_similarity(network, [])
    with pytest.raises(ValueError, match=r"unknown features 'mixers'.*mixer"):
        layer_similarity(network, [x], "mixers")
    with pytest.raises(ValueError, match=r"unknown module 'stages\.9'.*: [a-z]"):
        layer_similarity(network, [x], ["stages.9"])
    with pytest.raises(ValueError, match=r"ResNet has no 'mixer'.*layer1"):
        layer_similarity(timm.create_model("test_resnet"), [x])
    with pytest.raises(ValueError, match="ResNet has no 'scan' to compare: expected block, or names"):
        layer_similarity(timm.create_model("test_resnet"), [x], "scan")
    constant = Stored(torch.randn(6, 3), torch.full((6, 4), 7.3))
    with pytest.raises(ValueError, match=r"constant features.*: layer1"):
        layer_similarity(constant, [numbered(6, torch.float32)], ["layer0", "layer1"])
    endless = Stored(torch.full((6, 3), float("inf")))
    with pytest.raises(ValueError, match="features of layer0 are not finite"):
        layer_similarity(endless, [numbered(6)], ["layer0"])
