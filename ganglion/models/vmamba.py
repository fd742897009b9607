"""VMamba: Visual State Space Model (Liu et al. 2024), all published sizes, acceleration steps and studies.

VMamba is the skeleton with SS2D as mixer and no connections; every variant is a `VMambaConfig`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from timm.layers import calculate_drop_path_rates
from timm.models import DefaultCfg, generate_default_cfgs, register_model
from torch import nn

from ..config import check_kernel, check_literals, check_positive
from ..layers.basic import Act, Device, DType, make_norm
from ..layers.block import Block
from ..layers.mlp import GatedMlp, Mlp
from ..layers.position_embedding import PositionEmbedding
from ..layers.ss2d import SS2D, OutNorm, Scan, SSMInit
from ..layers.stem import Downsample, conv_stem, make_downsample, patch_stem
from . import connections
from .backbone import Backbone, Stage
from .registry import build, default_cfg


@dataclass(frozen=True, kw_only=True)
class VMambaConfig:
    """One VMamba network. Names of the published options in brackets.

    depths, dims: blocks and channels of the four stages.
    d_state, ssm_ratio, dt_rank (ceil(dim / 16) if None), d_conv (0 for no convolution), conv_bias, gate (not `_noz`),
        gate_act (not `_nozact`), act, out_act (`_oact`), out_norm (`_on...`), scan (`v05*d*`), ssm_init
        (`initialize`): of SS2D.
    mlp_ratio: hidden over input channels of the MLP, 0 for none. mlp: "gated" is `gmlp`.
    ssm_ratio 0 leaves out the scan. post_norm: norms follow their branches.
    norm: "ln" (ln and ln2d, which differ in memory layout only) or "bn".
    stem: "patch" (v1) or "conv" (v2). patch_size: see `layers.stem`.
    downsample: "merge" (v1), "conv2" (v2) or "conv3" (v3).
    pos_embed: a learned position embedding after the stem (`posembed`).
    """

    depths: tuple[int, ...] = (2, 2, 5, 2)
    dims: tuple[int, ...] = (96, 192, 384, 768)
    d_state: int = 1
    ssm_ratio: float = 2.0
    dt_rank: int | None = None
    d_conv: int = 3
    conv_bias: bool = False
    gate: bool = False
    gate_act: bool = True
    act: Act = "silu"
    out_act: bool = False
    out_norm: OutNorm = "ln"
    scan: Scan = "cross2d"
    ssm_init: SSMInit = "v0"
    mlp_ratio: float = 4.0
    mlp: Literal["mlp", "gated"] = "mlp"
    norm: Literal["ln", "bn"] = "ln"
    post_norm: bool = False
    stem: Literal["patch", "conv"] = "conv"
    patch_size: Literal[2, 4] = 4
    downsample: Downsample = "conv3"
    pos_embed: bool = False

    def __post_init__(self) -> None:
        check_literals(self)
        check_positive(self, "depths", "dims", "d_state")
        if self.dt_rank is not None:
            check_positive(self, "dt_rank")
        if len(self.depths) != len(self.dims):
            raise ValueError(f"depths {self.depths} and dims {self.dims}: expected the same number of stages")
        check_kernel(self, "d_conv")
        for name in ("ssm_ratio", "mlp_ratio"):
            if getattr(self, name) < 0:
                raise ValueError(
                    f"VMambaConfig.{name} is {getattr(self, name)}: expected 0 (no such branch) or more"
                )


class VMamba(Backbone):
    """VMamba (section 4 of the paper).

    config: the network. img_size: of the position embedding, if there is one; any size runs.
    out_norms: a LayerNorm on every map of the pyramid, as in the published detection and segmentation networks.
    backend: of the scan, see `ganglion.backends()`. Other arguments are timm's.
    """

    def __init__(
        self,
        config: VMambaConfig,
        *,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        img_size: int | tuple[int, int] = 224,
        out_norms: bool = False,
        output_stride: int = 32,
        backend: str = "auto",
        device: Device = None,
        dtype: DType = None,
    ):
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        c = config
        make_stem = patch_stem if c.stem == "patch" else conv_stem
        drop_paths: Any = calculate_drop_path_rates(drop_path_rate, list(c.depths), stagewise=True)
        stages = []
        for i, (depth, dim) in enumerate(zip(c.depths, c.dims, strict=True)):
            downsample = make_downsample(c.downsample, c.dims[i - 1], dim, norm=c.norm, **dd) if i else None
            blocks = [_block(c, dim, drop_paths[i][j], backend, dd) for j in range(depth)]
            stages.append(Stage(downsample, blocks, connections.plain(depth)))
        pos_embed = None
        if c.pos_embed:
            height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
            pos_embed = PositionEmbedding(
                c.dims[0], (-(-height // c.patch_size), -(-width // c.patch_size)), **dd
            )
        super().__init__(
            stem=make_stem(in_chans, c.dims[0], norm=c.norm, patch_size=c.patch_size, **dd),
            patch_size=c.patch_size,
            stages=stages,
            dims=c.dims,
            norm=make_norm(c.norm, c.dims[-1], **dd),
            num_classes=num_classes,
            in_chans=in_chans,
            global_pool=global_pool,
            drop_rate=drop_rate,
            pos_embed=pos_embed,
            out_norms=[make_norm("ln", dim, **dd) for dim in c.dims] if out_norms else None,
            output_stride=output_stride,
            **dd,
        )
        self.config = config
        self.apply(_init_weights)


def _block(c: VMambaConfig, dim: int, drop_path: float, backend: str, dd: dict[str, Any]) -> Block:
    mixer = mlp = None
    if c.ssm_ratio > 0:
        mixer = SS2D(
            dim,
            d_state=c.d_state,
            ssm_ratio=c.ssm_ratio,
            dt_rank=c.dt_rank,
            d_conv=c.d_conv,
            conv_bias=c.conv_bias,
            gate=c.gate,
            gate_act=c.gate_act,
            act=c.act,
            out_act=c.out_act,
            out_norm=c.out_norm,
            scan=c.scan,
            ssm_init=c.ssm_init,
            backend=backend,
            **dd,
        )
    if c.mlp_ratio > 0:
        mlp = (GatedMlp if c.mlp == "gated" else Mlp)(dim, int(dim * c.mlp_ratio), **dd)
    return Block(
        dim,
        mixer=mixer,
        norm1=make_norm(c.norm, dim, halves=True, **dd) if mixer is not None else None,
        mlp=mlp,
        norm2=make_norm(c.norm, dim, halves=True, **dd) if mlp is not None else None,
        post_norm=c.post_norm,
        drop_path=drop_path,
        **dd,
    )


def _init_weights(module: nn.Module) -> None:
    """Linear layers as published; convolutions keep torch's default, the scan its own."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


_S2L5 = VMambaConfig()
_S1L8 = VMambaConfig(depths=(2, 2, 8, 2), ssm_ratio=1.0)
_BASE_DIMS = (128, 256, 512, 1024)
_VANILLA = VMambaConfig(
    depths=(2, 2, 9, 2),
    d_state=16,
    conv_bias=True,
    gate=True,
    mlp_ratio=0.0,
    stem="patch",
    downsample="merge",
)
_V6 = VMambaConfig(depths=(2, 2, 2, 2), d_state=16, d_conv=0, gate=True)
_V7 = replace(_V6, ssm_ratio=1.0)
_V7_L5 = replace(_V7, depths=(2, 2, 5, 2))

_RELEASES = "https://github.com/MzeroMiko/VMamba/releases/download/"


def _cfg(file: str = "", **kwargs: Any) -> dict[str, Any]:
    published = {"url": _RELEASES + file, "license": "mit"} if file else {}
    return default_cfg(**published, paper_ids="arXiv:2401.10166", **kwargs)


default_cfgs: dict[str, DefaultCfg] = generate_default_cfgs(
    {
        "vmamba_tiny_s2l5.in1k": _cfg("%23v2cls/vssm_tiny_0230_ckpt_epoch_262.pth"),
        "vmamba_small_s2l15.in1k": _cfg("%23v2cls/vssm_small_0229_ckpt_epoch_222.pth"),
        "vmamba_base_s2l15.in1k": _cfg("%23v2cls/vssm_base_0229_ckpt_epoch_237.pth"),
        "vmamba_tiny_s1l8.in1k": _cfg("%23v2cls/vssm1_tiny_0230s_ckpt_epoch_264.pth"),
        "vmamba_small_s1l20.in1k": _cfg("%23v2cls/vssm1_small_0229s_ckpt_epoch_240.pth"),
        "vmamba_base_s1l20.in1k": _cfg("%23v2cls/vssm1_base_0229s_ckpt_epoch_225.pth"),
        "vanilla_vmamba_tiny.in1k": _cfg("%23v0cls/vssmtiny_dp01_ckpt_epoch_292.pth"),
        "vanilla_vmamba_small.in1k": _cfg("%23v0cls/vssmsmall_dp03_ckpt_epoch_238.pth"),
        "vanilla_vmamba_base.in1k": _cfg("%23v0cls/vssmbase_dp06_ckpt_epoch_241.pth"),
        "vmamba_tiny_v5.untrained": _cfg(),
        "vmamba_tiny_v6.untrained": _cfg(),
        "vmamba_tiny_v7.untrained": _cfg(),
        "vmamba_tiny_v7_l5.untrained": _cfg(),
        "vmamba_tiny_v8.untrained": _cfg(),
        "vmamba_tiny_s2l5_unidi.untrained": _cfg(),
        "vmamba_tiny_s2l5_bidi.untrained": _cfg(),
        "vmamba_tiny_s2l5_cascade.untrained": _cfg(),
        "vmamba_nano.untrained": _cfg(input_size=(3, 32, 32), pool_size=(1, 1), crop_pct=1.0),
        "test_vmamba.untrained": _cfg(input_size=(3, 96, 96), pool_size=(3, 3)),
    }
)


def _create(variant: str, pretrained: bool, config: VMambaConfig, **kwargs) -> VMamba:
    return build(VMamba, variant, pretrained, config, **kwargs)


@register_model
def vmamba_tiny_s2l5(pretrained: bool = False, **kwargs) -> VMamba:
    """VMamba-T of the paper: 30.7 M, 4.86 GFLOPs, 82.5 % top-1."""
    return _create("vmamba_tiny_s2l5", pretrained, _S2L5, **kwargs)


@register_model
def vmamba_small_s2l15(pretrained: bool = False, **kwargs) -> VMamba:
    """VMamba-S of the paper: 50.1 M, 8.72 GFLOPs, 83.6 % top-1."""
    return _create("vmamba_small_s2l15", pretrained, replace(_S2L5, depths=(2, 2, 15, 2)), **kwargs)


@register_model
def vmamba_base_s2l15(pretrained: bool = False, **kwargs) -> VMamba:
    """VMamba-B of the paper: 88.6 M, 15.4 GFLOPs, 83.9 % top-1."""
    config = replace(_S2L5, depths=(2, 2, 15, 2), dims=_BASE_DIMS)
    return _create("vmamba_base_s2l15", pretrained, config, **kwargs)


@register_model
def vmamba_tiny_s1l8(pretrained: bool = False, **kwargs) -> VMamba:
    """The faster VMamba-T released later: 30.2 M, 4.91 GFLOPs, 82.6 % top-1."""
    return _create("vmamba_tiny_s1l8", pretrained, _S1L8, **kwargs)


@register_model
def vmamba_small_s1l20(pretrained: bool = False, **kwargs) -> VMamba:
    """The faster VMamba-S released later: 49.0 M, 8.61 GFLOPs, 83.3 % top-1."""
    return _create("vmamba_small_s1l20", pretrained, replace(_S1L8, depths=(2, 2, 20, 2)), **kwargs)


@register_model
def vmamba_base_s1l20(pretrained: bool = False, **kwargs) -> VMamba:
    """The faster VMamba-B released later: 86.6 M, 15.2 GFLOPs, 83.8 % top-1."""
    config = replace(_S1L8, depths=(2, 2, 20, 2), dims=_BASE_DIMS)
    return _create("vmamba_base_s1l20", pretrained, config, **kwargs)


@register_model
def vanilla_vmamba_tiny(pretrained: bool = False, **kwargs) -> VMamba:
    """Vanilla VMamba-T (V0 of the acceleration steps): 22.9 M, 5.63 GFLOPs, 82.2 % top-1."""
    return _create("vanilla_vmamba_tiny", pretrained, _VANILLA, **kwargs)


@register_model
def vanilla_vmamba_small(pretrained: bool = False, **kwargs) -> VMamba:
    """Vanilla VMamba-S: 44.4 M, 11.2 GFLOPs, 83.5 % top-1."""
    return _create("vanilla_vmamba_small", pretrained, replace(_VANILLA, depths=(2, 2, 27, 2)), **kwargs)


@register_model
def vanilla_vmamba_base(pretrained: bool = False, **kwargs) -> VMamba:
    """Vanilla VMamba-B: 76.3 M, 18.0 GFLOPs, 83.7 % top-1."""
    config = replace(_VANILLA, depths=(2, 2, 27, 2), dims=_BASE_DIMS)
    return _create("vanilla_vmamba_base", pretrained, config, **kwargs)


@register_model
def vmamba_tiny_v5(pretrained: bool = False, **kwargs) -> VMamba:
    """Acceleration steps V0 to V5, which compute the same network in faster ways."""
    return _create("vmamba_tiny_v5", pretrained, _VANILLA, **kwargs)


@register_model
def vmamba_tiny_v6(pretrained: bool = False, **kwargs) -> VMamba:
    """Step V6: MLPs and overlapping convolutions, no depthwise convolution, depths 2-2-2-2."""
    return _create("vmamba_tiny_v6", pretrained, _V6, **kwargs)


@register_model
def vmamba_tiny_v7(pretrained: bool = False, **kwargs) -> VMamba:
    """Step V7: ssm_ratio 2 -> 1, depths 2-2-2-2."""
    return _create("vmamba_tiny_v7", pretrained, _V7, **kwargs)


@register_model
def vmamba_tiny_v7_l5(pretrained: bool = False, **kwargs) -> VMamba:
    """Step V7 in its other reading: depths 2-2-5-2, the gate kept."""
    return _create("vmamba_tiny_v7_l5", pretrained, _V7_L5, **kwargs)


@register_model
def vmamba_tiny_v8(pretrained: bool = False, **kwargs) -> VMamba:
    """Step V8: no gate, depths 2-2-5-2. V9 is `vmamba_tiny_s2l5`."""
    return _create("vmamba_tiny_v8", pretrained, replace(_V7_L5, gate=False), **kwargs)


@register_model
def vmamba_tiny_s2l5_unidi(pretrained: bool = False, **kwargs) -> VMamba:
    """Table 5: four times the row-major route."""
    return _create("vmamba_tiny_s2l5_unidi", pretrained, replace(_S2L5, scan="unidi"), **kwargs)


@register_model
def vmamba_tiny_s2l5_bidi(pretrained: bool = False, **kwargs) -> VMamba:
    """Table 5: the row-major route twice in each direction."""
    return _create("vmamba_tiny_s2l5_bidi", pretrained, replace(_S2L5, scan="bidi"), **kwargs)


@register_model
def vmamba_tiny_s2l5_cascade(pretrained: bool = False, **kwargs) -> VMamba:
    """Table 5: rows, then columns, line by line."""
    return _create("vmamba_tiny_s2l5_cascade", pretrained, replace(_S2L5, scan="cascade2d"), **kwargs)


@register_model
def vmamba_nano(pretrained: bool = False, **kwargs) -> VMamba:
    """For experiments on images of 32 to 64 pixels."""
    return _create(
        "vmamba_nano", pretrained, replace(_S1L8, depths=(1, 1, 4, 1), dims=(32, 64, 128, 204)), **kwargs
    )


@register_model
def test_vmamba(pretrained: bool = False, **kwargs) -> VMamba:
    """A tiny network with every part of VMamba, for tests."""
    config = replace(
        _S2L5, depths=(1, 1, 2, 1), dims=(16, 24, 32, 48), gate=True, conv_bias=True, pos_embed=True
    )
    return _create("test_vmamba", pretrained, config, **kwargs)
