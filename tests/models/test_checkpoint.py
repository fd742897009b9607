from __future__ import annotations

import pytest
import safetensors.torch
import timm
import torch
from timm.models.vision_transformer import VisionTransformer

import ganglion  # noqa: F401  registers the models
from ganglion.models.checkpoint import checkpoint_filter_fn, load_checkpoint
from ganglion.models.official import to_ganglion, to_official
from tests.golden_data import load
from tests.models.refusals import assert_refused, assert_same, snapshot

#: Published file and case -> the model with the same tensors.
PUBLISHED = {
    ("sparx/sparx_mamba_t", None): ("sparx_mamba_tiny", {}),
    ("sparx/sparx_mamba_s", None): ("sparx_mamba_small", {}),
    ("vmamba/vmamba_tiny_s1l8", None): ("vmamba_tiny_s1l8", {}),
    ("vmamba/vmamba_tiny_s1l8_backbone", None): ("vmamba_tiny_s1l8", {"out_norms": True, "num_classes": 0}),
    ("vmamba/vmamba_tiny_s2l5", None): ("vmamba_tiny_s2l5", {}),
    ("vmamba/vanilla_vmamba_tiny", None): ("vanilla_vmamba_tiny", {}),
    ("vmamba/variants", "variant_v5_v05_ln2d"): ("vmamba_tiny_v5", {}),
    ("vmamba/variants", "variant_v6_mlp_2222"): ("vmamba_tiny_v6", {}),
    ("vmamba/variants", "variant_cascade_s1l8"): ("vmamba_tiny_s1l8", {"scan": "cascade2d"}),
    ("vmamba/variants", "variant_posembed_ndw_s1l8"): (
        "vmamba_tiny_s1l8",
        {"pos_embed": True, "d_conv": 0, "img_size": 64},
    ),
    ("vmamba/variants", "variant_bn_s1l8"): ("vmamba_tiny_s1l8", {"norm": "bn"}),
    ("vmamba/variants", "variant_downv2_s1l8"): ("vmamba_tiny_s1l8", {"downsample": "conv2"}),
    ("vmamba/variants", "variant_gmlp_mini"): (
        "vmamba_tiny_s1l8",
        {"mlp": "gated", "depths": (1, 1, 2, 1), "dims": (48, 96, 192, 384)},
    ),
}


def published_shapes(file: str, case: str | None) -> dict[str, torch.Tensor]:
    return {
        k: torch.empty(s, device="meta", dtype=torch.int64 if k.endswith("num_batches_tracked") else None)
        for k, s in load(file).shapes(case).items()
    }


def rand_like(value):
    return torch.randn(value.shape) if value.is_floating_point() else torch.full_like(value, 5)


@pytest.mark.parametrize(("golden", "target"), PUBLISHED.items(), ids=lambda v: str(v[1] or v[0]))
def test_published_names_and_shapes_fit(golden, target):
    published = published_shapes(*golden)
    model = timm.create_model(target[0], device="meta", **target[1])
    converted = checkpoint_filter_fn(published, model)
    own = {k: v.shape for k, v in model.state_dict().items()}
    if golden[0].endswith("_backbone"):
        own = {k: s for k, s in own.items() if not k.startswith("norm.")}
    assert {k: v.shape for k, v in converted.items()} == own


@pytest.mark.parametrize(("golden", "target"), PUBLISHED.items(), ids=lambda v: str(v[1] or v[0]))
def test_own_state_dicts_go_back_to_published_names_and_shapes(golden, target):
    published = published_shapes(*golden)
    model = timm.create_model(target[0], device="meta", **target[1])
    family = golden[0].split("/")[0]
    back = {k: v.shape for k, v in to_official(model.state_dict(), family).items()}
    if golden[0].endswith("_backbone"):
        back = {k: s for k, s in back.items() if not k.startswith("classifier.")}
    assert back == {k: v.shape for k, v in published.items()}
    assert len(set(to_ganglion(published).values())) == len(published)


@pytest.mark.parametrize(
    ("published", "ours"),
    [
        ("patch_embed.6.weight", "stem.2.conv.weight"),
        ("patch_embed.4.running_var", "stem.1.norm.running_var"),
        ("layers.0.downsample.0.weight", "stages.1.downsample.conv.weight"),
        ("layers.2.downsample.1.bias", "stages.3.downsample.norm.bias"),
        ("layers.1.blocks.10.pos_embed.weight", "stages.1.dpe.10.weight"),
        ("layers.1.blocks.1.norm.weight", "stages.1.blocks.1.norm1.weight"),
        ("layers.1.blocks.1.norm2.weight", "stages.1.blocks.1.norm2.weight"),
        ("layers.1.blocks.1.op.in_proj.weight", "stages.1.blocks.1.mixer.in_proj.weight"),
        ("layers.1.blocks.1.op.in_proj.2.bias", "stages.1.blocks.1.mixer.in_proj.fuse.2.bias"),
        ("layers.1.blocks.1.op.d_proj.3.weight", "stages.1.blocks.1.mixer.in_proj.d_proj.3.weight"),
        ("layers.1.blocks.1.op.q.0.1.weight", "stages.1.blocks.1.mixer.in_proj.q.0.1.weight"),
        ("layers.1.blocks.1.op.scale", "stages.1.blocks.1.mixer.in_proj.attention.scale"),
        ("layers.1.blocks.1.op.A_logs", "stages.1.blocks.1.mixer.A_logs"),
        ("layers.2.blocks.1.layerscale_2.bias", "stages.2.blocks.1.ls2.bias"),
        ("layers.2.blocks.1.mlp.dwconv.bias", "stages.2.blocks.1.mlp.dwconv.bias"),
        ("norm.3.weight", "out_norms.3.weight"),
        ("classifier.0.weight", "norm.weight"),
        ("classifier.3.weight", "head.fc.weight"),
    ],
)
def test_sparx_names(published, ours):
    assert to_ganglion([published, "patch_embed.1.weight"])[published] == ours


def test_sparx_shapes_come_back():
    ours = {
        "stages.0.blocks.0.mixer.x_proj_weight": torch.randn(4, 8, 12),
        "stages.0.blocks.0.mixer.in_proj.weight": torch.randn(12, 6),
        "stages.0.blocks.0.mixer.dt_projs_weight": torch.randn(4, 12, 6),
        "head.fc.weight": torch.randn(5, 6),
    }
    theirs = to_official(ours, "sparx")
    assert {k: tuple(v.shape) for k, v in theirs.items()} == {
        "layers.0.blocks.0.op.x_proj_weight": (32, 12, 1),
        "layers.0.blocks.0.op.in_proj.weight": (12, 6, 1, 1),
        "layers.0.blocks.0.op.dt_projs_weight": (4, 12, 6),
        "classifier.3.weight": (5, 6),
    }
    with pytest.raises(ValueError, match="swin"):
        to_official(ours, "swin")


def old_names(published):
    """Release -> the names of the first vanilla checkpoints (one stem convolution, norms called ln_1)."""
    rename = (
        (".norm.", ".ln_1."),
        (".op.", ".self_attention."),
        ("patch_embed.0.", "patch_embed.proj."),
        ("patch_embed.2.", "patch_embed.norm."),
        ("classifier.norm.", "norm."),
        ("classifier.head.", "head."),
    )
    out = {}
    for name, value in published.items():
        for new, old in rename:
            block_only = new in (".norm.", ".op.")
            if new in name and (not block_only or ".blocks." in name):
                name = name.replace(new, old)
        out[name] = value
    return out


def rewrite_names(published):
    """Release -> the single-file rewrite: the scan's projections as layers, patch merging numbered."""
    out = {}
    for name, value in published.items():
        if name.endswith("x_proj_weight"):
            name, value = name.replace("x_proj_weight", "x_proj.weight"), value.flatten(0, 1)
        elif name.endswith("dt_projs_weight"):
            name, value = name.replace("dt_projs_weight", "dt_projs.weight"), value.flatten(0, 1)
        elif ".downsample.norm." in name:
            name = name.replace("downsample.norm", "downsample.1")
        elif ".downsample.reduction." in name:
            name = name.replace("downsample.reduction", "downsample.2")
        elif name.endswith((".in_proj.weight", ".fc1.weight")):
            value = value[:, :, None, None]
        out[name] = value
    return out


def under(prefix, state):
    return {prefix + k: v for k, v in state.items()}


LAYOUTS = {
    "release": lambda w: {"model": w},
    "bare": lambda w: w,
    "rewrite": lambda w: {"model": rewrite_names(w)},
    "data parallel": lambda w: {"state_dict": under("module.", w)},
    "compiled": lambda w: {"state_dict": under("module._orig_mod.", w)},
    "mmseg": lambda w: {
        "meta": {"epoch": 3},
        "state_dict": under("backbone.", w) | {"decode_head.conv.weight": torch.zeros(3, 3)},
    },
    "ema wins": lambda w: {"model": {k: v + 1 for k, v in w.items()}, "model_ema": under("module.", w)},
    "lightning ema": lambda w: {
        "state_dict": under("model.", w),
        "current_model_state": under("model.", {k: v + 1 for k, v in w.items()}),
    },
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("downsample", ["conv3", "merge"])
def test_layouts(layout, downsample):
    model = timm.create_model("test_vmamba", num_classes=7, img_size=64, downsample=downsample)
    expected = {k: torch.randn(v.shape) for k, v in model.state_dict().items()}
    report = load_checkpoint(model, LAYOUTS[layout](to_official(expected, "vmamba")))
    assert_same(model.state_dict(), expected)
    assert report.complete and report.layout == "vmamba" and set(report.loaded) == set(expected)
    assert report.ignored == (("decode_head.conv.weight",) if layout == "mmseg" else ())


def test_sparx_dense_layouts():
    """Detection: a learned scale, and a norm for every map of the pyramid, beside a neck."""
    model = timm.create_model("test_sparx_mamba", num_classes=0, learned_scale=True, out_norms=True)
    expected = {k: rand_like(v) for k, v in model.state_dict().items()}
    published = to_official(expected, "sparx")
    assert {"norm.0.weight", "norm.3.bias"} <= published.keys()
    assert any(k.endswith(".op.scale") for k in published)
    detector = {"state_dict": under("backbone.", published) | {"neck.lateral.weight": torch.zeros(2)}}
    report = load_checkpoint(model, detector)
    assert_same(model.state_dict(), expected)
    assert report.complete and report.layout == "sparx" and report.ignored == ("neck.lateral.weight",)


def test_old_vanilla_names():
    config = {"stem": "patch", "downsample": "merge", "mlp_ratio": 0.0, "pos_embed": False}
    model = timm.create_model("test_vmamba", num_classes=7, **config)
    expected = {k: torch.randn(v.shape) for k, v in model.state_dict().items()}
    old = old_names(to_official(expected, "vmamba"))
    assert (
        "layers.0.blocks.0.ln_1.weight" in old and "patch_embed.proj.weight" in old and "head.weight" in old
    )
    load_checkpoint(model, {"model": old})
    assert_same(model.state_dict(), expected)


@pytest.mark.parametrize("out_norm", ["dwconv3", "ln_dwconv3"])
def test_convolutions_as_out_norm_round_trip(out_norm):
    model = timm.create_model("test_vmamba", num_classes=7, img_size=64, out_norm=out_norm)
    expected = snapshot(model)
    published = to_official(expected, "vmamba")
    ours = {k.removeprefix("op."): list(v.shape[1:]) for k, v in published.items() if ".op.out_norm." in k}
    case = {"dwconv3": "ss2d_v05_ondwconv3_noz_cf", "ln_dwconv3": "ss2d_v05_oncnorm_noz_cf"}[out_norm]
    golden = {k: s[1:] for k, s in load("vmamba/ss2d").shapes(case).items() if k.startswith("out_norm.")}
    assert {k.split(".op.")[1]: s for k, s in ours.items()} == golden
    load_checkpoint(model, published)
    assert_same(model.state_dict(), expected)


def test_own_names_and_files(model, tmp_path):
    expected = {k: torch.randn(v.shape) for k, v in model.state_dict().items()}
    safetensors.torch.save_file(expected, tmp_path / "a.safetensors")
    torch.save({"model": expected}, tmp_path / "b.pth")
    torch.save(expected, tmp_path / "c.pth", _use_new_zipfile_serialization=False)
    (tmp_path / "d.bin").write_bytes((tmp_path / "a.safetensors").read_bytes())
    for file in sorted(tmp_path.iterdir()):
        for p in model.parameters():
            p.data.zero_()
        report = load_checkpoint(model, file if file.suffix == ".bin" else str(file))
        assert report.layout == "ganglion" and report.complete
        assert_same(model.state_dict(), expected)


def test_wrapped_networks(model, published):
    for wrapped in (torch.compile(model, backend="eager"), torch.nn.Sequential(torch.nn.Identity(), model)):
        model.reset_classifier(7)
        assert load_checkpoint(wrapped, published).complete
        assert torch.equal(model.head.fc.bias, published["classifier.head.bias"])
    for other, count in (
        (torch.nn.Linear(2, 2), 0),
        (torch.nn.ModuleList([model, timm.create_model("test_vmamba")]), 2),
    ):
        with pytest.raises(ValueError, match=f"holds {count} networks"):
            load_checkpoint(other, published)


def test_features_only_model(published):
    features = timm.create_model("test_vmamba", num_classes=7, img_size=64, features_only=True)
    report = load_checkpoint(features, published, strict=False)
    assert not report.missing and "stages.3.blocks.0.mixer.A_logs" in report.loaded
    name = "layers.3.blocks.0.op.A_logs"
    assert torch.equal(features.model.state_dict()["stages.3.blocks.0.mixer.A_logs"], published[name])


def test_weights_argument(model, published):
    averaged = {k: v + 1 for k, v in published.items()}
    both = {"model": published, "model_ema": averaged, "optimizer": {"step": 3}}
    bias = published["classifier.head.bias"]
    for choice, expected in (("raw", bias), ("ema", bias + 1), ("auto", bias + 1)):
        load_checkpoint(model, both, weights=choice)
        assert torch.equal(model.head.fc.bias, expected), choice
    assert_refused(model, {"model": published}, "averaged", "model_ema", weights="ema")
    assert_refused(model, {"model_ema": published}, "averaged weights only", weights="raw")
    assert_refused(model, both, "'emma'", "Did you mean 'ema'", error=ValueError, weights="emma")


def test_position_embedding_is_resized(model, published):
    small = torch.nn.functional.interpolate(published["pos_embed"], size=(7, 9), mode="bicubic")
    load_checkpoint(model, published | {"pos_embed": small})
    expected = torch.nn.functional.interpolate(small, size=(16, 16), mode="bicubic", align_corners=False)
    torch.testing.assert_close(model.pos_embed.weight.data, expected)


def test_half_precision_file_keeps_the_models_dtype(model, published):
    load_checkpoint(model, {k: v.half() for k, v in published.items()})
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    torch.testing.assert_close(model.head.fc.bias.data, published["classifier.head.bias"].half().float())


def test_timm_builder_takes_published_files(model, published, tmp_path):
    """pretrained=True with a published file, other numbers of classes and channels, through timm's loader."""
    torch.save({"model": published}, tmp_path / "release.pth")
    cfg = {"file": str(tmp_path / "release.pth"), "num_classes": 7, "input_size": (3, 64, 64)}
    built = timm.create_model(
        "test_vmamba", pretrained=True, pretrained_cfg_overlay=cfg, num_classes=3, in_chans=1, img_size=64
    )
    state = built.state_dict()
    name = "stages.2.blocks.1.mixer.x_proj_weight"
    assert torch.equal(state[name], published["layers.2.blocks.1.op.x_proj_weight"])
    stem = published["patch_embed.0.weight"].sum(1, keepdim=True)
    torch.testing.assert_close(state["stem.0.conv.weight"], stem)
    assert built.head.fc.out_features == 3


def test_mismatches_are_listed_and_strict_false_reports_them(model, published):
    del published["layers.0.blocks.0.norm.weight"]
    published["layers.0.blocks.0.op.extra"] = torch.zeros(2)
    published["layers.1.blocks.0.op.out_proj.weight"] = torch.zeros(5, 6)
    error = assert_refused(
        model,
        published,
        "1 missing: stages.0.blocks.0.norm1.weight",
        "1 unexpected: layers.0.blocks.0.op.extra",
        "1 misshapen: stages.1.blocks.0.mixer.out_proj.weight is (5, 6), the model's is (24, 48)",
        "unchanged",
        "strict=False",
    )
    kept = model.stages[1].blocks[0].mixer.out_proj.weight.clone()
    report = load_checkpoint(model, published, strict=False)
    assert report == error.report
    assert report.missing == ("stages.0.blocks.0.norm1.weight",)
    assert [m.name for m in report.misshapen] == ["stages.1.blocks.0.mixer.out_proj.weight"]
    assert torch.equal(model.stages[1].blocks[0].mixer.out_proj.weight, kept)
    assert torch.equal(model.head.fc.bias, published["classifier.head.bias"])


def test_other_number_of_classes(published):
    model = timm.create_model("test_vmamba", num_classes=10, img_size=64)
    assert_refused(model, published, "has 7 classes, the model's 10", "num_classes=7", "reset_classifier(10)")
    model = timm.create_model("test_vmamba", num_classes=0, img_size=64)
    assert_refused(model, published, "no classifier (num_classes=0)")
    assert load_checkpoint(model, published, strict=False).unexpected == (
        "classifier.head.weight",
        "classifier.head.bias",
    )


def test_shapes_are_not_bent(model, published):
    """Equal element counts do not make two weights the same."""
    weight = published["layers.0.blocks.0.mlp.fc1.weight"]
    published["layers.0.blocks.0.mlp.fc1.weight"] = weight.t().contiguous()
    assert_refused(model, published, "stages.0.blocks.0.mlp.fc1.weight is (16, 64), the model's is (64, 16)")


def test_wrong_dtype(model, published):
    published["classifier.head.bias"] = torch.zeros(7, dtype=torch.int8)
    assert_refused(model, published, "classifier.head.bias", "torch.int8", "torch.float32")


def test_foreign_networks(model):
    vit = VisionTransformer(img_size=32, patch_size=16, embed_dim=16, depth=1, num_heads=2, num_classes=7)
    assert_refused(
        model, timm.create_model("test_convnext").state_dict(), "no tensor of VMamba", "stem.0.weight"
    )
    error = assert_refused(model, vit.state_dict(), "missing", "unexpected", "blocks.0.attn.qkv.weight")
    assert "stages.0.blocks.0.mixer.A_logs" in error.report.missing
    assert_refused(model, {"a": {"b": 1}}, "no tensors", "'a'")
    two = under("student.", model.state_dict()) | under("teacher.", model.state_dict())
    assert_refused(model, two, "several networks", "'student.'", "'teacher.'")


def test_meta_model_is_refused():
    model = timm.create_model("test_vmamba", device="meta")
    with pytest.raises(ValueError, match="meta device"):
        load_checkpoint(model, {})
