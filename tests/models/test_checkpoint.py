from __future__ import annotations

import pytest
import safetensors.torch
import timm
import torch
from timm.models.vision_transformer import VisionTransformer

import ganglion
from ganglion.models.weight_loading import load_checkpoint
from ganglion.models.weight_names import to_official
from tests.golden_data import load
from tests.models.refusals import assert_refused, assert_same, snapshot, under


def rand_like(value):
    return torch.randn(value.shape) if value.is_floating_point() else torch.full_like(value, 5)


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


@pytest.mark.parametrize("kind", ["missing", "unexpected", "misshapen"])
def test_one_mismatch_of_any_kind_is_refused(model, published, kind):
    """And it is one of the network, not of its classifier alone."""
    name = "layers.0.blocks.0.norm.weight"
    if kind == "missing":
        del published[name]
    else:
        published[name + ".more" if kind == "unexpected" else name] = torch.zeros(3)
    error = assert_refused(model, published, f"1 {kind}: ")
    assert len(getattr(error.report, kind)) == 1
    assert not (error.report.complete or error.report.matches or error.report.all_but_classifier)
    assert error.report.other_classes is None


def test_a_classifier_may_be_told_from_the_rest(model, published):
    weights = {k: v for k, v in published.items() if not k.startswith("classifier.head")}
    error = assert_refused(model, weights, "2 missing")
    assert error.report.all_but_classifier and error.report.other_classes is None
    weights |= {"classifier.head.weight": torch.zeros(9, 48), "classifier.head.bias": torch.zeros(9)}
    error = assert_refused(model, weights, "has 9 classes, the model's 7")
    assert error.report.all_but_classifier and error.report.other_classes == 9


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


class Wrapped(torch.Tensor):
    """A tensor whose values only its own code knows, as distributed and quantized ones are."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise NotImplementedError(func)


ODD = {
    "meta": lambda v: v.to("meta"),
    "sparse": lambda v: v.to_sparse(),
    "sparse rows": lambda v: v.to_sparse_csr(),
    "quantized": lambda v: torch.quantize_per_tensor(v, 0.1, 0, torch.qint8),
    "nested": lambda v: torch.nested.nested_tensor(list(v)),
    "complex": lambda v: v.to(torch.complex64),
    "int": lambda v: v.to(torch.int64),
    "bool": lambda v: v > 0,
    "wrapped": Wrapped,
    "uninitialized": lambda v: torch.nn.parameter.UninitializedParameter(),
    "NaN": lambda v: torch.where(v == v.max(), torch.nan, v),
    "infinite": lambda v: v / 0,
    "too large": lambda v: v.double() * 1e300,
    "bits": lambda v: torch.zeros(v.shape, dtype=torch.uint8).view(torch.float4_e2m1fn_x2),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", ODD)
def test_one_odd_tensor_leaves_the_model_unchanged(model, kind):
    """The last but one of the file, when all before it fit."""
    own = {k: torch.randn(v.shape) for k, v in model.state_dict().items()}
    assert list(own)[-2] == "head.fc.weight"
    for content in (own, to_official(own, "vmamba")):
        name = list(content)[-2]
        assert_refused(model, content | {name: ODD[kind](content[name])}, "head")


def test_weights_that_are_not_finite_are_taken_on_request(model, published):
    published["classifier.head.bias"][2] = torch.nan
    assert_refused(model, published, "1 not finite: head.fc.bias", "another checkpoint")
    report = load_checkpoint(model, published, strict=False)
    assert report.not_finite == ("head.fc.bias",) and not report.complete
    assert model.head.fc.bias.isnan().sum() == 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_other_precisions_are_converted(model, published, dtype):
    assert load_checkpoint(model, {k: v.to(dtype) for k, v in published.items()}).complete
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    bias = published["classifier.head.bias"]
    torch.testing.assert_close(model.head.fc.bias.data, bias.to(dtype).float(), rtol=0, atol=0)


@pytest.mark.parametrize("in_chans", [1, 2, 4, 13])
@pytest.mark.parametrize("name", ["test_vmamba", "test_sparx_mamba", "test_sparx_swin"])
def test_first_layer_is_adapted_to_other_channels(name, in_chans, tmp_path):
    """As timm adapts it for its pretrained weights; refused where every shape has to match."""
    source = snapshot(timm.create_model(name, num_classes=7))
    torch.save(source, tmp_path / "weights.pth")
    cfg = {"file": str(tmp_path / "weights.pth"), "num_classes": 7}
    expected = timm.create_model(
        name, pretrained=True, pretrained_cfg_overlay=cfg, num_classes=7, in_chans=in_chans
    ).state_dict()
    model = timm.create_model(name, num_classes=7, in_chans=in_chans)
    error = assert_refused(model, source, f"3 input channels, the model {in_chans}", "strict=False")
    assert [m.name for m in error.report.misshapen] == ["stem.0.conv.weight"] and not error.report.adapted
    report = load_checkpoint(model, source, strict=False)
    assert report.matches and report.all_but_classifier and not report.complete
    assert [m.name for m in report.adapted] == ["stem.0.conv.weight"] and "adapted" in str(report)
    assert_same(model.state_dict(), expected)


@pytest.mark.parametrize(("found", "wanted"), [(1, 3), (4, 3), (5, 1)])
def test_first_layer_is_adapted_from_other_channels(found, wanted):
    """Repeated in order and scaled, so that an image of equal channels gives what it gave; summed for one."""
    source = timm.create_model("test_vmamba", num_classes=7, in_chans=found)
    model = timm.create_model("test_vmamba", num_classes=7, in_chans=wanted)
    assert load_checkpoint(model, source.state_dict(), strict=False).matches
    weight = source.stem[0].conv.weight
    repeated = torch.stack([weight[:, i % found] for i in range(wanted)], 1) * found / wanted
    expected = weight.sum(1, keepdim=True) if wanted == 1 else repeated
    torch.testing.assert_close(model.stem[0].conv.weight, expected)
    layer = source.state_dict() | {"stem.0.conv.weight": torch.zeros(9, found, 3, 3)}
    assert [m.name for m in load_checkpoint(model, layer, strict=False).misshapen] == ["stem.0.conv.weight"]


@pytest.mark.parametrize("name", [*ganglion.list_models("test_*"), *ganglion.list_models("*nano*")])
@pytest.mark.parametrize("load", ["load_checkpoint", "load_state_dict", "assign"])
def test_models_made_without_memory(name, load):
    """What no file holds is computed when weights are loaded, whatever the memory held before."""
    expected = timm.create_model(name, num_classes=7).eval()
    model = timm.create_model(name, num_classes=7, device="meta").eval()
    if load == "assign":
        model.load_state_dict(expected.state_dict(), assign=True)
    else:
        model.to_empty(device="cpu")
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.data.fill_(torch.nan if tensor.is_floating_point() else 10**6)
        if load == "load_checkpoint":
            load_checkpoint(torch.nn.Sequential(model), expected.state_dict())
        else:
            model.load_state_dict(expected.state_dict())
    assert_same(dict(model.named_buffers()), dict(expected.named_buffers()))
    x = torch.randn(1, *expected.pretrained_cfg["input_size"])
    assert torch.equal(model(x), expected(x))


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


def test_models_that_take_no_values_are_refused(published):
    model = timm.create_model("test_vmamba", device="meta")
    with pytest.raises(ValueError, match=r"meta device.*to_empty"):
        load_checkpoint(model, {})
    with torch.inference_mode():
        model = timm.create_model("test_vmamba", num_classes=7, img_size=64)
        assert load_checkpoint(model, published).complete
    assert_refused(model, published, "made in inference mode", error=ValueError)
    model = timm.create_model("test_vmamba", num_classes=7, img_size=64)
    model.head.fc.bias = torch.nn.Parameter(torch.zeros(7).to_sparse())
    with pytest.raises(ValueError, match=r"head\.fc\.bias of the model is sparse"):
        load_checkpoint(model, published)
