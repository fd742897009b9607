"""SparX for experiments: the ablations of the paper (Lou et al. 2025, Tables 5 to 8), and networks for small images.

An ablation is SparX-Mamba-T with one thing changed. No weights of these were published.
"""

from __future__ import annotations

from dataclasses import replace

from timm.models import DefaultCfg, generate_default_cfgs, register_model

from .registry import build
from .sparx import SparX, SparXConfig, sparx_cfg

_SMALL_IMAGES = {"input_size": (3, 32, 32), "pool_size": (1, 1), "crop_pct": 1.0}

default_cfgs: dict[str, DefaultCfg] = generate_default_cfgs(
    {
        "sparx_mamba_tiny_dgc.untrained": sparx_cfg(crop_pct=0.9),
        "sparx_mamba_tiny_dsn.untrained": sparx_cfg(crop_pct=0.9),
        "sparx_mamba_tiny_concat.untrained": sparx_cfg(crop_pct=0.9),
        "sparx_mamba_tiny_no_cgca.untrained": sparx_cfg(crop_pct=0.9),
        "sparx_mamba_tiny_csa.untrained": sparx_cfg(crop_pct=0.9),
        "sparx_mamba_tiny_sra.untrained": sparx_cfg(crop_pct=0.9),
        "sparx_mamba_tiny_sca.untrained": sparx_cfg(crop_pct=0.9),
        "sparx_mamba_tiny_plain.untrained": sparx_cfg(crop_pct=0.9),
        "sparx_mamba_tiny_s1.untrained": sparx_cfg(crop_pct=0.9),
        "sparx_mamba_tiny_s3.untrained": sparx_cfg(crop_pct=0.9),
        "sparx_mamba_tiny_s4.untrained": sparx_cfg(crop_pct=0.9),
        "sparx_mamba_tiny_m2.untrained": sparx_cfg(crop_pct=0.9),
        "sparx_mamba_tiny_m4.untrained": sparx_cfg(crop_pct=0.9),
        "sparx_mamba_tiny_no_dpe.untrained": sparx_cfg(crop_pct=0.9),
        "sparx_mamba_tiny_no_skip.untrained": sparx_cfg(crop_pct=0.9),
        "sparx_mamba_tiny_no_sr.untrained": sparx_cfg(crop_pct=0.9),
        "sparx_mamba_nano.untrained": sparx_cfg(**_SMALL_IMAGES),
        "sparx_mamba_nano_plain.untrained": sparx_cfg(**_SMALL_IMAGES),
        "sparx_swin_nano.untrained": sparx_cfg(**_SMALL_IMAGES),
        "sparx_swin_nano_plain.untrained": sparx_cfg(**_SMALL_IMAGES),
    }
)

_NANO = SparXConfig(depths=(1, 2, 5, 2), dims=(32, 48, 80, 128), start=(None, 1, 0, 0))
_NANO_PLAIN = replace(_NANO, connections="plain", dims=(32, 48, 96, 144))
_SWIN_NANO = replace(
    _NANO, mixer="swin", ffn="mlp", dpe=False, stem="conv", downsample="conv3", window_size=4
)
_SWIN_NANO_PLAIN = replace(_SWIN_NANO, connections="plain", dims=(32, 56, 92, 152))


def _create(variant: str, pretrained: bool, config: SparXConfig, **kwargs) -> SparX:
    return build(SparX, variant, pretrained, config, **kwargs)


@register_model
def sparx_mamba_tiny_dgc(pretrained: bool = False, **kwargs) -> SparX:
    """Table 5: every ganglion reads everything before it."""
    return _create("sparx_mamba_tiny_dgc", pretrained, SparXConfig(connections="dgc"), **kwargs)


@register_model
def sparx_mamba_tiny_dsn(pretrained: bool = False, **kwargs) -> SparX:
    """Table 5: a DenseNet-style network: every layer reads all before it."""
    config = SparXConfig(connections="dsn", start=(1, 0, 0, 0))
    return _create("sparx_mamba_tiny_dsn", pretrained, config, **kwargs)


@register_model
def sparx_mamba_tiny_concat(pretrained: bool = False, **kwargs) -> SparX:
    """Table 6: earlier features are concatenated and projected, in place of DMCA."""
    return _create("sparx_mamba_tiny_concat", pretrained, SparXConfig(aggregator="concat"), **kwargs)


@register_model
def sparx_mamba_tiny_no_cgca(pretrained: bool = False, **kwargs) -> SparX:
    """Table 6: DMCA without its cross-channel attention."""
    return _create("sparx_mamba_tiny_no_cgca", pretrained, SparXConfig(aggregator="no_cgca"), **kwargs)


@register_model
def sparx_mamba_tiny_csa(pretrained: bool = False, **kwargs) -> SparX:
    """Table 6: spatial attention to two scales (Shang et al. 2023), in place of DMCA."""
    return _create("sparx_mamba_tiny_csa", pretrained, SparXConfig(aggregator="csa"), **kwargs)


@register_model
def sparx_mamba_tiny_sra(pretrained: bool = False, **kwargs) -> SparX:
    """Table 6: spatial-reduction attention (Wang et al. 2021), in place of DMCA."""
    return _create("sparx_mamba_tiny_sra", pretrained, SparXConfig(aggregator="sra"), **kwargs)


@register_model
def sparx_mamba_tiny_sca(pretrained: bool = False, **kwargs) -> SparX:
    """Table 6: FcaFormer's spatial cross-attention (Zhang, Hu and Wang 2023), in place of DMCA."""
    return _create("sparx_mamba_tiny_sca", pretrained, SparXConfig(aggregator="sca"), **kwargs)


@register_model
def sparx_mamba_tiny_plain(pretrained: bool = False, **kwargs) -> SparX:
    """Table 7: no connections, widened to the parameters of SparX-Mamba-T."""
    return _create(
        "sparx_mamba_tiny_plain",
        pretrained,
        SparXConfig(connections="plain", dims=(96, 192, 384, 576)),
        **kwargs,
    )


@register_model
def sparx_mamba_tiny_s1(pretrained: bool = False, **kwargs) -> SparX:
    """Table 7: every layer of stage 2 is a ganglion (S = 1). The printed numbers need a window of 4."""
    return _create("sparx_mamba_tiny_s1", pretrained, SparXConfig(stride=1, window=4), **kwargs)


@register_model
def sparx_mamba_tiny_s3(pretrained: bool = False, **kwargs) -> SparX:
    """Table 7: two normal layers between ganglions of stage 2 (S = 3)."""
    return _create("sparx_mamba_tiny_s3", pretrained, SparXConfig(stride=(1, 1, 3, 1)), **kwargs)


@register_model
def sparx_mamba_tiny_s4(pretrained: bool = False, **kwargs) -> SparX:
    """Table 7: three normal layers between ganglions of stage 2 (S = 4)."""
    return _create("sparx_mamba_tiny_s4", pretrained, SparXConfig(stride=(1, 1, 4, 1)), **kwargs)


@register_model
def sparx_mamba_tiny_m2(pretrained: bool = False, **kwargs) -> SparX:
    """Table 7: a ganglion reads at most two earlier ones (M = 2)."""
    return _create("sparx_mamba_tiny_m2", pretrained, SparXConfig(window=2), **kwargs)


@register_model
def sparx_mamba_tiny_m4(pretrained: bool = False, **kwargs) -> SparX:
    """Table 7, M = 4. The printed parameters need the stage input in the window."""
    return _create(
        "sparx_mamba_tiny_m4", pretrained, SparXConfig(cross_stage=(False, False, True, False)), **kwargs
    )


@register_model
def sparx_mamba_tiny_no_dpe(pretrained: bool = False, **kwargs) -> SparX:
    """Table 8: without dynamic position encodings."""
    return _create("sparx_mamba_tiny_no_dpe", pretrained, SparXConfig(dpe=False), **kwargs)


@register_model
def sparx_mamba_tiny_no_skip(pretrained: bool = False, **kwargs) -> SparX:
    """Table 8: DMCA without its skip connection."""
    return _create("sparx_mamba_tiny_no_skip", pretrained, SparXConfig(skip=False), **kwargs)


@register_model
def sparx_mamba_tiny_no_sr(pretrained: bool = False, **kwargs) -> SparX:
    """Table 8: DMCA without spatial reduction."""
    return _create("sparx_mamba_tiny_no_sr", pretrained, SparXConfig(sr_ratios=(1, 1, 1, 1)), **kwargs)


@register_model
def sparx_mamba_nano(pretrained: bool = False, **kwargs) -> SparX:
    """For experiments on images of 32 to 64 pixels."""
    return _create("sparx_mamba_nano", pretrained, _NANO, **kwargs)


@register_model
def sparx_mamba_nano_plain(pretrained: bool = False, **kwargs) -> SparX:
    """`sparx_mamba_nano` without connections, widened to its number of parameters."""
    return _create("sparx_mamba_nano_plain", pretrained, _NANO_PLAIN, **kwargs)


@register_model
def sparx_swin_nano(pretrained: bool = False, **kwargs) -> SparX:
    """`sparx_mamba_nano` with window attention."""
    return _create("sparx_swin_nano", pretrained, _SWIN_NANO, **kwargs)


@register_model
def sparx_swin_nano_plain(pretrained: bool = False, **kwargs) -> SparX:
    """`sparx_swin_nano` without connections, widened to its number of parameters."""
    return _create("sparx_swin_nano_plain", pretrained, _SWIN_NANO_PLAIN, **kwargs)
