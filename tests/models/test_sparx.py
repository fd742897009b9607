from __future__ import annotations

import dataclasses

import pytest
import timm
import torch

import ganglion
from ganglion.models import SparXConfig
from tests.golden_data import image, load
from tests.tolerances import relative_rms

PARAMETERS = {"sparx_mamba_tiny": 27_051_794, "sparx_mamba_small": 47_444_712, "sparx_mamba_base": 83_536_168}
#: Millions, as far as the paper prints them (Tables 6 to 8).
MILLIONS = {
    "plain": 27.4,
    "s1": 29.9,
    "s3": 26.3,
    "s4": 25.8,
    "m2": 26.8,
    "m4": 27.5,
    "dgc": 28.8,
    "concat": 27.9,
    "csa": 26.0,
    "sra": 27.0,
    "sca": 27.9,
    "no_dpe": 27.0,
    "no_skip": 27.0,
    "no_sr": 27.0,
}
AGGREGATORS = ["dmca", "concat", "no_cgca", "csa", "sra", "sca"]


def count(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters(name):
    assert count(timm.create_model(name, device="meta")) == PARAMETERS[name]


@pytest.mark.parametrize("study", MILLIONS)
def test_parameters_of_the_studies(study):
    millions = count(timm.create_model(f"sparx_mamba_tiny_{study}", device="meta")) / 1e6
    assert round(millions, 1) == MILLIONS[study]


@pytest.mark.parametrize("size", ["t", "s"])
def test_golden_logits_and_features(size):
    golden = load(f"sparx/sparx_mamba_{size}")
    model = timm.create_model({"t": "sparx_mamba_tiny", "s": "sparx_mamba_small"}[size]).eval()
    ganglion.load_checkpoint(model, golden.state_dict())
    for key, size in golden.meta["inputs"].items():
        x = image(size["batch"], size["h"], size["w"], size["seed"])
        with torch.inference_mode():
            last, maps = model.forward_intermediates(x)
            logits = model.forward_head(last)
        assert (logits - golden[f"logits_{key}"]).abs().max() <= 2e-5
        for i, features in enumerate(maps):
            assert golden.summary_error(f"{key}/stage{i}", features, sep="/") <= 1e-4


@pytest.mark.parametrize("size", ["t", "s"])
def test_golden_ganglion_layer(size):
    """Every tensor around the first ganglion layer."""
    golden = load(f"sparx/sparx_mamba_{size}")
    model = timm.create_model({"t": "sparx_mamba_tiny", "s": "sparx_mamba_small"}[size]).eval()
    ganglion.load_checkpoint(model, golden.state_dict())
    block = model.stages[1].blocks[1]
    seen = {}
    model.stages[1].dpe[1].register_forward_hook(lambda m, args, y: seen.update(x=args[0]))
    block.register_forward_hook(lambda m, args, y: seen.update(shortcut=torch.cat(args[0][1:], 1), out=y))
    block.mixer.register_forward_hook(lambda m, args, y: seen.update(mixer_in=args[0], mixer_out=y))
    size = golden.meta["inputs"]["64"]
    with torch.inference_mode():
        model(image(size["batch"], size["h"], size["w"], size["seed"]))
    for name, tensor in seen.items():
        assert relative_rms(tensor, golden[f"ganglion/{name}"]) <= 1e-5, name


def test_plans_of_the_sizes_are_those_of_the_golden_networks():
    for name, size in (("sparx_mamba_tiny", "t"), ("sparx_mamba_small", "s")):
        model = timm.create_model(name, device="meta")
        plans = [list(stage.plan.ganglions) for stage in model.stages]
        assert plans == load(f"sparx/sparx_mamba_{size}").meta["ganglion_layers"]


def test_learned_scale_equals_the_fixed_one_at_its_value():
    torch.manual_seed(0)
    fixed = timm.create_model("test_sparx_mamba").eval()
    learned = timm.create_model("test_sparx_mamba", learned_scale=True).eval()
    learned.load_state_dict(fixed.state_dict(), strict=False)
    scales = {n: p for n, p in learned.named_parameters() if n.endswith("attention.scale")}
    assert len(scales) == sum(len(stage.plan.ganglions) for stage in fixed.stages)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        for name, scale in scales.items():
            stage = int(name.split(".")[1])
            side = 64 // 4 // 2**stage
            reduced = -(-side // fixed.config.sr_ratios[stage])
            scale.fill_(reduced**-1.0)
        torch.testing.assert_close(learned(x), fixed(x))


def test_features_are_dropped_as_soon_as_no_layer_reads_them():
    """No more maps of a stage are alive during a block than the plan keeps."""
    import weakref

    model = timm.create_model("test_sparx_mamba").eval()
    stage = model.stages[2]
    alive: list[weakref.ref] = []
    counts = []

    def note(module, args, output):
        counts.append(sum(ref() is not None for ref in alive))
        alive.append(weakref.ref(output))

    for block in stage.blocks:
        block.register_forward_hook(note)
    with torch.inference_mode():
        model(torch.randn(1, 3, 64, 64))
    plan = stage.plan
    for layer, found in enumerate(counts):
        # What the layer reads, what later layers read, and its own input.
        needed = {j for j in range(layer) if plan.last_read.get(j, -1) >= layer} | ({layer - 1} - {-1})
        assert found <= len(needed), layer


@pytest.mark.parametrize("aggregator", AGGREGATORS)
def test_every_aggregator_trains(aggregator):
    torch.manual_seed(0)
    model = timm.create_model("test_sparx_mamba", aggregator=aggregator, num_classes=3)
    model(torch.randn(2, 3, 48, 32)).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stride": 0}, "SparXConfig, stage 1: stride=0: must be at least 1"),
        ({"window": 0}, "SparXConfig, stage 1: window=0"),
        (
            {"start": (None, 5, 0, 0)},
            "SparXConfig, stage 1: start=5 is outside the stage: valid for depth 2: 0 to 1",
        ),
        ({"start": (0, 1, 0, 0)}, "SparXConfig, stage 0: .*nothing to read"),
        (
            {"channel_groups": 7},
            "SparXConfig.channel_groups is 7, which does not divide the 192 channels of stage 1",
        ),
        ({"mixer": "attention"}, "SparXConfig.mixer: unknown value 'attention'"),
        ({"aggregator": "dcma"}, r"SparXConfig.aggregator: unknown value 'dcma'. Did you mean 'dmca'\?"),
        ({"sr_ratios": (8, 4)}, "SparXConfig.sr_ratios is .*expected one value for each of the 4 stages"),
        ({"mixer": "swin", "heads": (3, 6, 7, 16)}, "SparXConfig.heads"),
        ({"d_conv": 4}, "SparXConfig.d_conv is 4"),
    ],
)
def test_wrong_options_are_named_at_construction(options, message):
    with pytest.raises(ValueError, match=message):
        SparXConfig(**options)


def test_an_aggregator_with_the_wrong_number_of_channels_is_refused_at_construction():
    from ganglion.layers.dmca import DMCA
    from ganglion.layers.ss2d import SS2D
    from ganglion.layers.window_attention import WindowAttention2d

    wrong = DMCA(32, 2, 60, sr_ratio=1)
    with pytest.raises(ValueError, match="in_proj returns 60 channels, expected 64"):
        SS2D(32, in_proj=wrong)
    with pytest.raises(ValueError, match="in_proj returns 60 channels, expected 96"):
        WindowAttention2d(32, heads=2, in_proj=wrong)


def test_a_network_of_ones_own_is_a_configuration():
    config = SparXConfig(
        depths=(1, 1, 4, 1), dims=(16, 24, 32, 40), mixer="bi_ssm", stride=2, window=1, start=(None, 0, 1, 0)
    )
    model = ganglion.SparX(config, num_classes=5)
    assert model(torch.randn(2, 3, 40, 56)).shape == (2, 5)
    assert dataclasses.replace(config, stride=1).plans()[2].ganglions == (1, 2, 3)


@pytest.mark.parametrize(
    ("name", "rival"),
    [
        ("sparx_mamba_nano", "sparx_mamba_nano_plain"),
        ("sparx_mamba_nano", "vmamba_nano"),
        ("sparx_swin_nano", "sparx_swin_nano_plain"),
    ],
)
def test_nano_networks_to_be_compared_have_equal_sizes(name, rival):
    sizes = [count(timm.create_model(n, device="meta", num_classes=10)) for n in (name, rival)]
    assert sizes[1] == pytest.approx(sizes[0], rel=0.005)
    assert 1e6 < sizes[0] < 2e6
