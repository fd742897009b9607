"""FLOPs against counts by hand and published ones; memory against PyTorch's allocator."""

from __future__ import annotations

from dataclasses import replace

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from ganglion.analysis.complexity import activation_memory, complexity
from ganglion.analysis.dense import SETTINGS, shapes_of
from ganglion.analysis.flop_formulas import missing_formulas
from ganglion.layers.block import IdentityScale
from ganglion.layers.ss2d import SS2D
from ganglion.ops import pattern, scan2d


class Call(nn.Module):
    """A function as a network."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class Mixer(SS2D):
    def forward(self, x):
        return super().forward(x, [])


@pytest.mark.parametrize(
    ("module", "flops"),
    [
        (nn.Conv2d(6, 8, 3, stride=2, padding=1), 8 * 3 * 5 * 6 * 9),
        (nn.Conv2d(6, 6, 5, padding=2, groups=6), 6 * 6 * 10 * 25),
        (nn.Linear(10, 7), 6 * 6 * 10 * 7),
        (nn.LayerNorm(10), 5 * 360),
        (nn.LayerNorm(10, elementwise_affine=False), 4 * 360),
        (nn.GroupNorm(1, 6), 5 * 360),
        (nn.BatchNorm2d(6), 2 * 360),
        (nn.BatchNorm2d(6, affine=False), 360),
        (nn.AdaptiveAvgPool2d(1), 360),
        (nn.AdaptiveAvgPool2d(2), 360),
        (IdentityScale(6), 360),
        (Call(lambda x: F.interpolate(x, (7, 3), mode="nearest")), 6 * 7 * 3),
        (Call(lambda x: F.interpolate(x, (7, 3), mode="bilinear")), 4 * 6 * 7 * 3),
        (Call(lambda x: x @ x.mT), 6 * 6 * 10 * 6),
        (Call(lambda x: F.gelu(x + x).flip(2).permute(0, 2, 3, 1)), 0),
    ],
    ids=lambda value: value._get_name() if isinstance(value, nn.Module) else None,
)
def test_count_by_hand(module, flops):
    """An image of (1, 6, 6, 10)."""
    assert complexity(module, (6, 10), in_chans=6).flops == flops


@pytest.mark.parametrize("d_state", [1, 16])
def test_scan_by_hand(d_state):
    """Projections of x, the step sizes inside the scan, the scan, convolution, norm and output projection."""
    height, width, dim = 5, 7, 32
    inner, rank, routes, pixels = 64, 2, 4, height * width
    expected = pixels * (
        dim * inner + 9 * inner + routes * inner * (rank + 2 * d_state) + routes * inner * rank
        + routes * inner * (9 * d_state + 1) + 5 * inner + inner * dim
    )  # fmt: skip
    assert complexity(Mixer(dim, d_state=d_state), (height, width), in_chans=dim).flops == expected


@pytest.mark.parametrize(
    ("head", "params", "flops"),
    [
        ("upernet", 61_902_572, "948.780190"),
        ("mask_rcnn", 49_755_312, "271.163377"),
        ("semantic_fpn", 33_854_550, "189.550821"),
    ],
)
def test_detectors_and_segmentors_to_the_last_digit(head, params, flops):
    """VMamba-T; the first two by the authors' own scripts."""
    found = complexity(shapes_of(head, "vmamba_tiny_s1l8"), SETTINGS[head].img_size)
    assert (found.params, f"{found.flops / 1e9:.6f}") == (params, flops)
    assert sum(part.flops for part in found.parts) == found.flops
    assert "other" not in [part.name for part in found.parts]


def test_heads_of_a_detector_by_hand():
    """Box head on every proposal, mask head on 100, or on as many as there are."""

    def parts(proposals: int) -> dict[str, int]:
        network = shapes_of("mask_rcnn", "test_vmamba", num_classes=7)
        config = replace(network.network.config, proposals=proposals)
        network.network.config = config
        return {part.name: part.flops for part in complexity(network, (64, 96)).parts}

    for proposals in (300, 60):
        found, masks = parts(proposals), min(proposals, 100)
        assert found["box_head"] == proposals * (256 * 7 * 7 * 1024 + 1024 * 1024)
        assert found["box_predictor"] == proposals * 1024 * (8 + 4 * 7)
        assert found["mask_head"] == masks * 4 * 14 * 14 * 256 * 256 * 9
        assert found["mask_predictor"] == masks * (14 * 14 * 256 * 256 * 4 + 28 * 28 * 256 * 7)


def test_the_auxiliary_head_takes_memory_in_training_only():
    with_it, without = (shapes_of("upernet", "test_vmamba"), shapes_of("upernet", "test_vmamba"))
    without.network.auxiliary_head = None
    sizes = {
        mode: [activation_memory(n, 64, batch_size=2, mode=mode) for n in (with_it, without)]
        for mode in ("inference", "training")
    }
    assert sizes["inference"][0] == sizes["inference"][1]
    assert sizes["training"][0] > sizes["training"][1]


def test_unknown_head():
    with pytest.raises(ValueError, match=r"'unet'.*'upernet'"):
        shapes_of("unet", "test_vmamba")


def test_attention_is_apart():
    network = Call(lambda x: F.scaled_dot_product_attention(x, x[..., :4, :], value=x[..., :4, :3]))
    products = 6 * (10 * 4 * 8 + 10 * 4 * 3)
    left_out = complexity(network, (10, 8), in_chans=6)
    assert (left_out.flops, left_out.attention_flops) == (0, products)
    included = complexity(network, (10, 8), in_chans=6, attention=True)
    assert (included.flops, included.attention_flops) == (products, products)


@pytest.mark.parametrize(
    ("name", "size", "params", "flops"),
    [
        ("resnet18", 224, "11.69", "1.82"),
        ("convnext_atto", 288, "3.70", "0.91"),
        ("vit_tiny_patch16_224", 224, "5.72", "1.26"),
        ("swin_tiny_patch4_window7_224", 224, "28.29", "4.51"),
    ],
)
def test_published_counts_of_other_networks(name, size, params, flops):
    """The figures that timm publishes, which include softmax attention."""
    found = complexity(timm.create_model(name, device="meta"), size, attention=True)
    assert f"{found.params / 1e6:.2f}" == params
    assert f"{found.flops / 1e9:.2f}" == flops


def test_parts_add_up_and_the_network_is_left_alone():
    network = timm.create_model("test_vmamba").train()
    network.norm.eval()
    before = {name: t.clone() for name, t in network.state_dict().items()}
    found = complexity(network, (40, 72))
    names = ["stem", "pos_embed", *(f"stages.{i}" for i in range(4)), "norm", "head"]
    assert [part.name for part in found.parts] == names
    assert sum(part.params for part in found.parts) == found.params
    assert found.params == sum(p.numel() for p in network.parameters())
    assert sum(part.flops for part in found.parts) == found.flops
    assert all(part.flops > 0 for part in found.parts if part.name != "pos_embed")
    assert found.parts[3].output == (network.feature_info[1]["num_chs"], 5, 9)
    assert network.training and not network.norm.training and network.stages[0].training
    assert all(torch.equal(t, before[name]) for name, t in network.state_dict().items())
    assert not network._forward_hooks and not any(m._forward_hooks for m in network.modules())


def test_every_operator_has_a_formula():
    assert missing_formulas() == []


@pytest.mark.parametrize("op", ["scan2d", "scan2d_backward", "selective_scan", "selective_scan_backward"])
def test_a_missing_formula_is_found(monkeypatch, op):
    monkeypatch.delitem(flop_registry, getattr(torch.ops.ganglion, op))
    assert missing_formulas() == [op]


def test_a_missing_formula_is_an_error_not_a_zero(monkeypatch):
    monkeypatch.delitem(flop_registry, torch.ops.ganglion.scan2d)
    with pytest.raises(LookupError, match=r"no FLOP formula for ganglion\.scan2d"):
        complexity(timm.create_model("test_vmamba", device="meta"), 32)


def test_pytorchs_own_counter_sees_the_scan_forward_and_backward():
    """Two FLOPs a multiply-accumulate there; the backward pass of the scan is twice its forward pass."""
    batch, height, width, channels, routes, rank, state = 2, 3, 5, 8, 4, 2, 3
    shapes = [(batch, height, width, channels), (batch, height, width, routes * (rank + 2 * state))]
    shapes += [(routes, channels, rank), (routes, channels), (routes, channels, state), (routes, channels)]
    tensors = [torch.empty(shape, device="meta", requires_grad=True) for shape in shapes]
    macs = batch * height * width * routes * channels * (9 * state + 1 + rank)
    with FlopCounterMode(display=False) as counter:
        y = scan2d(*tensors, routes=pattern("cross2d"))
    assert counter.get_total_flops() == 2 * macs
    with FlopCounterMode(display=False) as counter:
        y.sum().backward()
    assert counter.get_total_flops() == 4 * macs


@torch.no_grad()
def test_depthwise_convolutions_count_as_pytorchs():
    x, weight = (
        torch.empty(2, 5, 4, 8, device="meta").permute(0, 3, 1, 2),
        torch.empty(8, 1, 3, 3, device="meta"),
    )
    for stride in (1, 2):
        with FlopCounterMode(display=False) as ours:
            torch.ops.ganglion.depthwise(x, weight, None, stride, False, "gelu")
        with FlopCounterMode(display=False) as theirs:
            torch.nn.functional.conv2d(x, weight, None, stride, 1, groups=8)
        assert ours.get_total_flops() == theirs.get_total_flops() > 0


def test_a_linear_layer_and_its_gelu_count_as_the_layer():
    x, weight = torch.empty(2, 5, 4, device="meta"), torch.empty(8, 4, device="meta")
    with FlopCounterMode(display=False) as counter:
        torch.ops.ganglion.linear_gelu(x, weight, None)
    assert counter.get_total_flops() == 2 * (2 * 5) * 4 * 8


def test_selective_scan_in_pytorchs_own_counter():
    u, delta = (torch.empty(2, 6, 11, device="meta", requires_grad=True) for _ in range(2))
    A = torch.empty(6, 4, device="meta", requires_grad=True)
    B, C = (torch.empty(2, 3, 4, 11, device="meta", requires_grad=True) for _ in range(2))
    from ganglion.ops import selective_scan

    with FlopCounterMode(display=False) as counter:
        selective_scan(u, delta, A, B, C).sum().backward()
    assert counter.get_total_flops() == 3 * 2 * (2 * 6 * 11 * (9 * 4 + 1))


def allocated_at_peak(network: nn.Module, shape: tuple[int, ...], training: bool) -> int:
    """What PyTorch's CPU allocator hands out at most, from the image on."""
    network.train(training)
    tracing = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
    with tracing as trace, torch.set_grad_enabled(training):
        out = network(torch.zeros(shape))
        if training:
            out.sum().backward()
    events = [e for e in trace.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


@pytest.mark.parametrize("mode", ["inference", "training"])
def test_memory_is_what_the_allocator_hands_out(mode):
    network = timm.create_model("test_vit")
    expected = allocated_at_peak(network, (2, 3, 160, 160), mode == "training")
    assert activation_memory(network, 160, batch_size=2, mode=mode) == pytest.approx(expected, rel=0.01)


def test_memory_by_hand():
    """Image (2, 3, 4, 8), hidden (2, 3, 4, 32) before and after GELU, output as the image."""
    network = nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8))
    image, hidden = 2 * 3 * 4 * 8, 2 * 3 * 4 * 32
    size = {"img_size": (4, 8), "batch_size": 2}
    assert activation_memory(network, **size) == 4 * (image + 2 * hidden)
    assert activation_memory(network, **size, dtype=torch.bfloat16) == 2 * (image + 2 * hidden)
    kept = 4 * (2 * image + 2 * hidden)
    assert kept < activation_memory(network, **size, mode="training") < kept + 4 * (hidden + 2 * 8 * 32)


def test_a_feature_that_nobody_reads_costs_no_memory():
    """The peak of a chain does not grow with its length; with every map kept it does."""

    class Keeping(nn.Sequential):
        def forward(self, x):
            kept = []
            for layer in self:
                x = layer(x)
                kept.append(x)
            return x

    layers = [nn.Conv2d(3, 3, 3, padding=1) for _ in range(6)]
    one = 4 * 3 * 16 * 16
    assert activation_memory(nn.Sequential(*layers), 16) == 3 * one
    assert activation_memory(Keeping(*layers), 16) == 7 * one


@pytest.mark.parametrize("size", [0, (8, 0)])
def test_bad_size(size):
    with pytest.raises(ValueError, match="at least 1 pixel"):
        complexity(nn.Identity(), size)


@pytest.mark.parametrize("axes", [1, 3, (2,), (1, 2, 3), None])
def test_only_a_mean_over_the_pixels_is_a_pool(axes):
    mean = Call(lambda x: x.mean() if axes is None else x.mean(axes))
    assert complexity(mean, (4, 6), in_chans=5).flops == 0
    assert complexity(Call(lambda x: x.mean((2, 3))), (4, 6), in_chans=5).flops == 4 * 6 * 5


def test_bad_mode():
    with pytest.raises(ValueError, match=r"unknown mode 'train'\. Did you mean 'training'"):
        activation_memory(nn.Identity(), 8, mode="train")


def test_connections_cost_hardly_any_memory_at_inference():
    """SparX frees what no later layer reads: at most 5 % above VMamba (paper, Table 5: 4 %)."""
    sparx, vmamba = (
        activation_memory(timm.create_model(name, device="meta"))
        for name in ("sparx_mamba_tiny", "vmamba_tiny_s2l5")
    )
    assert sparx <= 1.05 * vmamba


def test_dense_connections_cost_memory():
    """Where the stage with the connections is the largest, the order of the paper's Table 5."""
    shape = {
        "depths": (1, 1, 7, 1),
        "dims": (4, 8, 128, 8),
        "start": (None, None, 0, None),
        "stride": 2,
        "d_conv": 3,
    }
    plain, sparx, dgc, dsn = (
        activation_memory(timm.create_model("sparx_mamba_tiny", device="meta", connections=kind, **shape))
        for kind in ("plain", "sparx", "dgc", "dsn")
    )
    assert plain < sparx < min(dgc, dsn)


@pytest.mark.parametrize(
    "name, peak", [("vmamba_tiny_s1l8", 38.1e6), ("sparx_mamba_tiny", 39.8e6), ("sparx_swin_tiny", 68.3e6)]
)
def test_networks_hold_no_map_longer_than_they_need(name, peak, monkeypatch):
    """Bytes at the peak of inference, as reached; a name that keeps a map alive adds several percent."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)  # slices of hidden maps go by it
    assert activation_memory(timm.create_model(name), 224, batch_size=4) < peak
