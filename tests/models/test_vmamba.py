from __future__ import annotations

import pytest
import timm
import torch

import ganglion
from ganglion.models import VMamba, VMambaConfig
from tests.golden_data import image, load

PARAMETERS = {
    "vmamba_tiny_s2l5": 30_705_832,
    "vmamba_small_s2l15": 50_147_752,
    "vmamba_base_s2l15": 88_557_800,
    "vmamba_tiny_s1l8": 30_249_064,
    "vmamba_small_s1l20": 49_012_840,
    "vmamba_base_s1l20": 86_614_504,
    "vanilla_vmamba_tiny": 22_893_448,
    "vanilla_vmamba_small": 44_417_416,
    "vanilla_vmamba_base": 76_254_056,
    "vmamba_tiny_v5": 22_893_448,
    "vmamba_tiny_v6": 28_991_656,
    "vmamba_tiny_v7": 22_926_376,
    "vmamba_tiny_v7_l5": 28_256_680,
    "vmamba_tiny_v8": 26_247_592,
    "vmamba_tiny_s2l5_unidi": 30_705_832,
    "vmamba_tiny_s2l5_bidi": 30_705_832,
    "vmamba_tiny_s2l5_cascade": 30_705_832,
}
LOGITS = 8e-6


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters(name):
    model = timm.create_model(name, device="meta")
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]


@pytest.mark.parametrize(
    ("options", "parameters"),
    [
        ({"d_state": 2}, 30_802_600),
        ({"d_state": 4}, 30_996_136),
        ({"d_state": 8, "ssm_ratio": 1.5}, 28_640_008),
        ({"d_state": 16, "ssm_ratio": 1.0}, 26_283_880),
        ({"ssm_ratio": 1.0}, 25_558_120),
        ({"ssm_ratio": 1.5}, 28_131_976),
        ({"mlp_ratio": 3.0, "ssm_ratio": 1.5, "depths": (2, 2, 8, 2)}, 28_485_640),
        ({"mlp_ratio": 2.0, "ssm_ratio": 2.5, "depths": (2, 2, 8, 2)}, 29_866_888),
        ({"out_norm": "none", "ssm_ratio": 1.0, "depths": (2, 2, 8, 2)}, 30_238_696),
        ({"out_norm": "dwconv3", "ssm_ratio": 1.0, "depths": (2, 2, 8, 2)}, 30_285_352),
        ({"out_norm": "ln_dwconv3", "ssm_ratio": 1.0, "depths": (2, 2, 8, 2)}, 30_295_720),
        ({"pos_embed": True, "d_conv": 0, "ssm_ratio": 1.0, "depths": (2, 2, 8, 2)}, 30_503_464),
    ],
)
def test_parameters_of_the_studies(options, parameters):
    model = timm.create_model("vmamba_tiny_s2l5", device="meta", **options)
    assert sum(p.numel() for p in model.parameters()) == parameters


@pytest.mark.parametrize("name", ["vmamba_tiny_s1l8", "vmamba_tiny_s2l5", "vanilla_vmamba_tiny"])
def test_golden_logits_and_features(name):
    golden = load(f"vmamba/{name}")
    model = timm.create_model(name).eval()
    ganglion.load_checkpoint(model, golden.state_dict())
    for batch, height, width, seed in golden.meta["inputs"]:
        key = f"{batch}x3x{height}x{width}.s{seed}."
        x = image(batch, height, width, seed)
        with torch.inference_mode():
            last, maps = model.forward_intermediates(x)
            logits = model.forward_head(last)
            assert torch.equal(logits, model(x))
        assert (logits - golden[key + "logits_f64"]).abs().max() <= LOGITS
        for i, features in enumerate(maps):
            assert golden.summary_error(f"{key}stage{i + 1}", features) <= 2e-5


def variant_config(published: dict) -> VMambaConfig:
    core, *suffixes = published["forward_type"].split("_")
    return VMambaConfig(
        depths=tuple(published["depths"]),
        dims=tuple(published["dims"] * 2**i for i in range(4)),
        d_state=published["ssm_d_state"],
        ssm_ratio=published["ssm_ratio"],
        d_conv=max(published["ssm_conv"], 0),
        conv_bias=published.get("ssm_conv_bias", True),
        gate="noz" not in suffixes,
        scan={"v051d": "unidi", "v052d": "bidi", "v052dc": "cascade2d"}.get(core, "cross2d"),
        mlp_ratio=published["mlp_ratio"],
        mlp="gated" if published.get("gmlp") else "mlp",
        norm="bn" if published["norm_layer"] == "bn" else "ln",
        stem={"v1": "patch", "v2": "conv"}[published["patchembed_version"]],
        downsample={"v1": "merge", "v2": "conv2", "v3": "conv3"}[published["downsample_version"]],
        pos_embed=published.get("posembed", False),
    )


@pytest.mark.parametrize("case", load("vmamba/variants").cases())
def test_golden_variants(case):
    golden = load("vmamba/variants")
    meta = golden.case(case)
    model = VMamba(variant_config(meta["config"]), img_size=meta["config"].get("imgsize", 224)).eval()
    assert sum(p.numel() for p in model.parameters()) == meta["param_count"]
    ganglion.load_checkpoint(model, golden.state_dict(case))
    batch, height, width, seed = meta["input"]
    with torch.inference_mode():
        logits = model(image(batch, height, width, seed))
    expected = golden[f"{case}.{batch}x3x{height}x{width}.s{seed}.logits_f64"]
    # BatchNorm with the golden statistics lets activations grow, so its bound is relative to the largest logit.
    bound = LOGITS if "bn" not in case else LOGITS * expected.abs().max()
    assert (logits - expected).abs().max() <= bound


def test_golden_pyramid_of_the_dense_form():
    golden = load("vmamba/vmamba_tiny_s1l8_backbone")
    model = timm.create_model("vmamba_tiny_s1l8", features_only=True, out_norms=True).eval()
    ganglion.load_checkpoint(model, golden.state_dict(), strict=False)
    batch, height, width, seed = golden.meta["inputs"][0]
    with torch.inference_mode():
        maps = model(image(batch, height, width, seed))
    assert [m.shape[2:] for m in maps] == [(32, 40), (16, 20), (8, 10), (4, 5)]
    for i, features in enumerate(maps):
        assert golden.summary_error(f"{batch}x3x{height}x{width}.s{seed}.out{i}", features) <= 2e-5


def test_every_model_of_the_paper_names_its_published_weights():
    for name in list(PARAMETERS)[:9]:
        assert timm.models.get_pretrained_cfg(name).url.endswith(".pth"), name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scan": "cros2d"}, r"VMambaConfig.scan: unknown value 'cros2d'. Did you mean 'cross2d'\?"),
        ({"d_state": 0}, "VMambaConfig.d_state is 0"),
        ({"d_conv": 4}, "VMambaConfig.d_conv is 4: expected an odd"),
        ({"depths": (1, 1)}, r"depths \(1, 1\) and dims"),
        ({"mlp_ratio": -1.0}, "VMambaConfig.mlp_ratio is -1.0"),
        ({"norm": "ln2d"}, "VMambaConfig.norm: unknown value 'ln2d'"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        timm.create_model("test_vmamba", **options)


def test_misspelt_options_are_refused():
    with pytest.raises(TypeError, match=r"test_vmamba: unknown argument 'd_stat'. Did you mean 'd_state'\?"):
        timm.create_model("test_vmamba", d_stat=2)
