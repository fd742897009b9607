"""SparX: sparse cross-layer connections (Lou et al. 2025), on Mamba and on Swin, and every ablation of the paper.

SparX is the skeleton with connections: a ganglion layer's mixer has an aggregator of earlier features where a normal
layer's has its input projection. Every network and ablation is a `SparXConfig`; those of the tables 5 to 8
are in `sparx_studies.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from timm.layers import calculate_drop_path_rates
from timm.models import DefaultCfg, generate_default_cfgs, register_model
from torch import nn

from ..config import check_kernel, check_literals, check_positive
from ..layers.aggregators import AggregatorName, make_aggregator
from ..layers.basic import Device, DType, make_norm
from ..layers.block import Block
from ..layers.depthwise import ResidualDWConv
from ..layers.mlp import ConvFFN, Mlp
from ..layers.ss2d import SS2D, Scan
from ..layers.stem import conv_stem, make_downsample, patch_stem
from ..layers.window_attention import WindowAttention2d
from . import connections
from .backbone import Backbone, Stage
from .connections import Plan
from .registry import build, default_cfg

Mixer = Literal["ss2d", "ssm", "bi_ssm", "swin"]
_SCANS: dict[str, Scan] = {"ss2d": "cross2d", "ssm": "ssm", "bi_ssm": "bi_ssm"}


def _at(value: Any, stage: int) -> Any:
    """What holds in one stage: a single value holds in all."""
    return value[stage] if isinstance(value, tuple) else value


@dataclass(frozen=True, kw_only=True)
class SparXConfig:
    """One SparX network.

    depths, dims: blocks and channels of the stages.

    Connections (section 3.1). A single value holds for every stage; a tuple has one per stage.
    connections: "sparx", or the dense rivals "dgc" and "dsn" of Table 5, or "plain" for none.
    stride: S, one plus the number of normal layers between two ganglions.
    window: M, how many earlier ganglions a ganglion reads at most, None for all.
    start: lowest index of a ganglion, None for a stage without any.
    cross_stage: the stage input stays in the window.

    aggregator: how a ganglion reads, see `ganglion.layers.aggregators`. channel_groups: of DMCA, or heads of its
        spatial rivals. sr_ratios: spatial reduction per stage. skip: of DMCA.
    learned_scale: DMCA's scores are scaled by a parameter, as in the published detection networks.

    mixer: "ss2d", "ssm" (one route), "bi_ssm" (two routes) or "swin" (windows, shifted in every second layer).
    d_state, ssm_ratio, d_conv: of the scans. window_size: side of the attention windows. heads: of the windows per
        stage, near one for 32 channels if None.
    ffn: "conv" or "mlp". dpe: dynamic position encoding. layer_scale: per stage.
    stem: "conv" (published stem v1), "conv_extra" (v2) or "patch". patch_size: see `layers.stem`.
    downsample: "conv3" or "merge".
    """

    depths: tuple[int, ...] = (2, 2, 7, 2)
    dims: tuple[int, ...] = (96, 192, 320, 512)
    connections: Literal["sparx", "plain", "dgc", "dsn"] = "sparx"
    stride: int | tuple[int, ...] = (1, 1, 2, 1)
    window: int | tuple[int | None, ...] | None = 3
    start: tuple[int | None, ...] = (None, 1, 0, 0)
    cross_stage: bool | tuple[bool, ...] = False
    aggregator: AggregatorName = "dmca"
    channel_groups: int = 4
    sr_ratios: tuple[int, ...] = (8, 4, 2, 1)
    skip: bool = True
    learned_scale: bool = False
    mixer: Mixer = "ss2d"
    d_state: int = 1
    ssm_ratio: float = 2.0
    d_conv: int = 5
    heads: tuple[int, ...] | None = None
    window_size: int = 7
    ffn: Literal["conv", "mlp"] = "conv"
    ffn_ratio: float = 4.0
    dpe: bool = True
    layer_scale: tuple[bool, ...] = (False, False, True, True)
    stem: Literal["conv", "conv_extra", "patch"] = "conv"
    patch_size: Literal[2, 4] = 4
    downsample: Literal["conv3", "merge"] = "conv3"

    def __post_init__(self) -> None:
        check_literals(self)
        check_positive(
            self,
            "depths",
            "dims",
            "sr_ratios",
            "channel_groups",
            "d_state",
            "ssm_ratio",
            "ffn_ratio",
            "window_size",
        )
        for name in ("dims", "stride", "window", "start", "cross_stage", "sr_ratios", "layer_scale", "heads"):
            value = getattr(self, name)
            if isinstance(value, tuple) and len(value) != len(self.depths):
                raise ValueError(
                    f"SparXConfig.{name} is {value!r}: expected one value for each of the {len(self.depths)} stages"
                )
        check_kernel(self, "d_conv")
        for i, (plan, dim) in enumerate(zip(self.plans(), self.dims, strict=True)):
            if plan.ganglions and dim % self.channel_groups:
                divisors = [g for g in range(1, dim + 1) if dim % g == 0]
                raise ValueError(
                    f"SparXConfig.channel_groups is {self.channel_groups}, which does not divide the {dim} channels of "
                    f"stage {i}; valid there: {', '.join(map(str, divisors))}"
                )
            if self.mixer == "swin" and dim % self.stage_heads(i):
                raise ValueError(
                    f"SparXConfig.heads is {self.heads!r}: stage {i} has {dim} channels, not a multiple"
                )

    def plans(self) -> tuple[Plan, ...]:
        """The connections of every stage. Raises ValueError, naming field and stage, if a rule cannot hold."""
        plans = []
        for i, depth in enumerate(self.depths):
            try:
                plans.append(self._plan(i, depth))
            except (ValueError, TypeError) as error:
                raise type(error)(f"SparXConfig, stage {i}: {error}") from None
        return tuple(plans)

    def _plan(self, i: int, depth: int) -> Plan:
        stride, window = _at(self.stride, i), _at(self.window, i)
        start, cross_stage = _at(self.start, i), _at(self.cross_stage, i)
        if self.connections == "plain" or start is None:
            return connections.plain(depth)
        if self.connections == "dsn":
            return connections.dsn(depth, stage_input=i > 0)
        if self.connections == "dgc":
            return connections.dgc(depth, stride=stride, start=start, stage_input=i > 0)
        return connections.sparx(
            depth, stride=stride, window=window, start=start, stage_input=i > 0, cross_stage=cross_stage
        )

    def stage_heads(self, i: int) -> int:
        """Heads of the window attention in stage i."""
        if self.heads is not None:
            return self.heads[i]
        divisors = [h for h in range(1, self.dims[i] + 1) if self.dims[i] % h == 0]
        return min(divisors, key=lambda h: abs(h - self.dims[i] / 32))


class SparX(Backbone):
    """SparX (section 3 of the paper).

    config: the network. out_norms: a LayerNorm on every map of the pyramid, as in the published detection and
    segmentation networks. backend: of the scan, see `ganglion.backends()`. Other arguments are timm's.
    """

    def __init__(
        self,
        config: SparXConfig,
        *,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        out_norms: bool = False,
        output_stride: int = 32,
        backend: str = "auto",
        device: Device = None,
        dtype: DType = None,
    ):
        dd: dict[str, Any] = {"device": device, "dtype": dtype}
        c = config
        if c.stem == "patch":
            stem = patch_stem(in_chans, c.dims[0], norm="bn", patch_size=c.patch_size, **dd)
        else:
            stem = conv_stem(
                in_chans,
                c.dims[0],
                norm="bn",
                patch_size=c.patch_size,
                bias=False,
                extra=c.stem == "conv_extra",
                **dd,
            )
        drop_paths: Any = calculate_drop_path_rates(drop_path_rate, list(c.depths), stagewise=True)
        stages = []
        for i, (dim, plan) in enumerate(zip(c.dims, c.plans(), strict=True)):
            downsample = None
            if i:
                norm = "gn" if c.downsample == "merge" else "bn"
                downsample = make_downsample(c.downsample, c.dims[i - 1], dim, norm=norm, bias=False, **dd)
            blocks = [
                _block(c, i, j, len(read), drop_paths[i][j], backend, dd) for j, read in enumerate(plan.reads)
            ]
            dpe = [ResidualDWConv(dim, **dd) for _ in blocks] if c.dpe else None
            stages.append(Stage(downsample, blocks, plan, dpe=dpe))
        super().__init__(
            stem=stem,
            stages=stages,
            dims=c.dims,
            patch_size=c.patch_size,
            norm=make_norm("gn", c.dims[-1], **dd),
            num_classes=num_classes,
            in_chans=in_chans,
            global_pool=global_pool,
            drop_rate=drop_rate,
            out_norms=[make_norm("ln", dim, eps=1e-6, **dd) for dim in c.dims] if out_norms else None,
            output_stride=output_stride,
            **dd,
        )
        self.config = config
        self.apply(_init_weights)


def _block(
    c: SparXConfig, i: int, j: int, n_earlier: int, drop_path: float, backend: str, dd: dict[str, Any]
) -> Block:
    """Block j of stage i: a ganglion if it reads earlier features, else a normal layer."""
    dim = c.dims[i]
    in_proj = None
    if n_earlier:
        in_proj = make_aggregator(
            c.aggregator,
            dim,
            n_earlier,
            3 * dim if c.mixer == "swin" else int(c.ssm_ratio * dim),
            sr_ratio=c.sr_ratios[i],
            groups=c.channel_groups,
            skip=c.skip,
            learned_scale=c.learned_scale,
            **dd,
        )
    if c.mixer == "swin":
        mixer = WindowAttention2d(
            dim, heads=c.stage_heads(i), window=c.window_size, shift=j % 2 == 1, in_proj=in_proj, **dd
        )
    else:
        mixer = SS2D(
            dim,
            d_state=c.d_state,
            ssm_ratio=c.ssm_ratio,
            d_conv=c.d_conv,
            out_norm="gn",
            scan=_SCANS[c.mixer],
            bias=True,
            in_proj=in_proj,
            backend=backend,
            **dd,
        )
    return Block(
        dim,
        mixer=mixer,
        norm1=make_norm("gn", dim, halves=True, **dd),
        mlp=(ConvFFN if c.ffn == "conv" else Mlp)(dim, int(dim * c.ffn_ratio), **dd),
        norm2=make_norm("gn", dim, halves=True, **dd),
        layer_scale=c.layer_scale[i],
        drop_path=drop_path,
        **dd,
    )


def _init_weights(module: nn.Module) -> None:
    """Every convolution and linear layer as published; the scan keeps its own."""
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


_TINY = SparXConfig()
_SMALL = SparXConfig(depths=(2, 2, 17, 2), dims=(96, 192, 328, 544), stride=(1, 1, 3, 1), stem="conv_extra")
_BASE = SparXConfig(
    depths=(2, 2, 21, 3),
    dims=(120, 240, 396, 636),
    stride=(1, 1, 3, 2),
    start=(None, 1, 0, 2),
    stem="conv_extra",
)
# Table 10 and Table 9 replace the mixer and do without DPE, the convolution and ConvFFN.
_SSM = replace(_TINY, mixer="ssm", d_conv=0, ffn="mlp", dpe=False)
_SWIN_TINY = replace(
    _TINY, mixer="swin", dims=(96, 192, 320, 576), ffn="mlp", dpe=False, stem="patch", downsample="merge"
)
# No released configuration: of the windows that were counted, 2 comes nearest to 88 M and 16.2 G (87.8 M, 16.4 G).
_SWIN_BASE = replace(
    _SWIN_TINY,
    depths=(2, 2, 27, 3),
    dims=(120, 240, 396, 616),
    stride=(1, 1, 3, 2),
    window=2,
    start=(None, 1, 0, 2),
)
# The last ganglions of stage 2 have a window to truncate, and 3 groups leave one channel over.
_TEST = SparXConfig(
    depths=(1, 1, 5, 2),
    dims=(16, 24, 32, 40),
    stride=1,
    window=2,
    start=(None, 0, 0, 0),
    d_conv=3,
    stem="conv_extra",
)

#: In the hub's words: the repository that publishes these weights has no licence.
_NONE_STATED = "other"

_RELEASES = "https://github.com/LMMMEng/SparX/releases/download/v1/"


def sparx_cfg(**kwargs: Any) -> dict[str, Any]:
    """timm's description of a SparX's weights and images."""
    return default_cfg(**{"crop_pct": 0.95, "paper_ids": "arXiv:2409.09649", **kwargs})


default_cfgs: dict[str, DefaultCfg] = generate_default_cfgs(
    {
        "sparx_mamba_tiny.in1k": sparx_cfg(
            url=_RELEASES + "sparx_mamba_tiny_in1k.pth", license=_NONE_STATED, crop_pct=0.9
        ),
        "sparx_mamba_small.in1k": sparx_cfg(
            url=_RELEASES + "sparx_mamba_small_in1k.pth", license=_NONE_STATED
        ),
        "sparx_mamba_base.untrained": sparx_cfg(),
        "sparx_swin_tiny.untrained": sparx_cfg(crop_pct=0.9),
        "sparx_swin_base.untrained": sparx_cfg(),
        "sparx_ssm_tiny.untrained": sparx_cfg(crop_pct=0.9),
        "sparx_bissm_tiny.untrained": sparx_cfg(crop_pct=0.9),
        "test_sparx_mamba.untrained": sparx_cfg(input_size=(3, 96, 96), pool_size=(3, 3)),
        "test_sparx_swin.untrained": sparx_cfg(input_size=(3, 96, 96), pool_size=(3, 3)),
    }
)


def _create(variant: str, pretrained: bool, config: SparXConfig, **kwargs) -> SparX:
    return build(SparX, variant, pretrained, config, **kwargs)


@register_model
def sparx_mamba_tiny(pretrained: bool = False, **kwargs) -> SparX:
    """SparX-Mamba-T: 27.1 M, 5.2 GFLOPs, 83.5 % top-1."""
    return _create("sparx_mamba_tiny", pretrained, _TINY, **kwargs)


@register_model
def sparx_mamba_small(pretrained: bool = False, **kwargs) -> SparX:
    """SparX-Mamba-S: 47.4 M, 9.3 GFLOPs, 84.2 % top-1."""
    return _create("sparx_mamba_small", pretrained, _SMALL, **kwargs)


@register_model
def sparx_mamba_base(pretrained: bool = False, **kwargs) -> SparX:
    """SparX-Mamba-B: 83.5 M, 15.9 GFLOPs, 84.5 % top-1."""
    return _create("sparx_mamba_base", pretrained, _BASE, **kwargs)


@register_model
def sparx_swin_tiny(pretrained: bool = False, **kwargs) -> SparX:
    """SparX-Swin-T (Table 9): windows in place of the scan, 82.6 % top-1."""
    return _create("sparx_swin_tiny", pretrained, _SWIN_TINY, **kwargs)


@register_model
def sparx_swin_base(pretrained: bool = False, **kwargs) -> SparX:
    """SparX-Swin-B (Table 9): 83.9 % top-1."""
    return _create("sparx_swin_base", pretrained, _SWIN_BASE, **kwargs)


@register_model
def sparx_ssm_tiny(pretrained: bool = False, **kwargs) -> SparX:
    """SparX-Mamba-T with one route (Table 10): 82.9 % top-1."""
    return _create("sparx_ssm_tiny", pretrained, _SSM, **kwargs)


@register_model
def sparx_bissm_tiny(pretrained: bool = False, **kwargs) -> SparX:
    """SparX-Mamba-T with two routes (Table 10): 83.1 % top-1."""
    return _create("sparx_bissm_tiny", pretrained, replace(_SSM, mixer="bi_ssm"), **kwargs)


@register_model
def test_sparx_mamba(pretrained: bool = False, **kwargs) -> SparX:
    """A tiny network with every part of SparX-Mamba, for tests."""
    return _create("test_sparx_mamba", pretrained, _TEST, **kwargs)


@register_model
def test_sparx_swin(pretrained: bool = False, **kwargs) -> SparX:
    """A tiny network with every part of SparX-Swin, for tests."""
    config = replace(_TEST, mixer="swin", ffn="mlp", dpe=False, stem="patch", downsample="merge")
    return _create("test_sparx_swin", pretrained, config, **kwargs)
