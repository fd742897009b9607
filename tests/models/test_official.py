"""The names and shapes of the published checkpoints, both ways."""

from __future__ import annotations

import pytest
import timm
import torch

import ganglion  # noqa: F401  registers the models
from ganglion.models.weight_loading import checkpoint_filter_fn
from ganglion.models.weight_names import to_ganglion, to_official
from tests.golden_data import load

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
        ("layers.1.blocks.1.op.in_proj.2.bias", "stages.1.blocks.1.mixer.in_proj.fusion.2.bias"),
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
