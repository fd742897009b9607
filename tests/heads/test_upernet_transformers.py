"""UperNet's two heads against those of transformers, which were written by others from the same paper."""

from __future__ import annotations

import pytest
import torch

from ganglion.heads.upernet import AuxiliaryHead, UperNetConfig, UperNetHead

modeling = pytest.importorskip(
    "transformers.models.upernet.modeling_upernet", reason="transformers is not installed"
)

CHANNELS = [8, 12, 20, 24]


@pytest.mark.parametrize("head", ["decode", "auxiliary"])
def test_heads_are_those_of_transformers(head):
    from transformers import ConvNextConfig
    from transformers import UperNetConfig as TheirConfig

    config = UperNetConfig(channels=16, aux_channels=6)
    theirs_config = TheirConfig(
        backbone_config=ConvNextConfig(),
        hidden_size=16,
        pool_scales=[1, 2, 3, 6],
        auxiliary_channels=6,
        num_labels=5,
    )
    if head == "decode":
        ours, theirs = (
            UperNetHead(CHANNELS, 5, config),
            modeling.UperNetHead(theirs_config, in_channels=CHANNELS),
        )
    else:
        ours = AuxiliaryHead(CHANNELS, 5, config)
        theirs = modeling.UperNetFCNHead(theirs_config, in_channels=CHANNELS)
    generator = torch.Generator().manual_seed(0)
    state = {
        name: torch.rand(value.shape, generator=generator) * (0.3 if value.ndim > 1 else 1.0)
        + 0.1 * (value.ndim < 2)
        for name, value in theirs.state_dict().items()
        if value.is_floating_point()
    }
    theirs.load_state_dict(state, strict=False)
    names = {
        name.replace("batch_norm", "bn").replace("classifier", "conv_seg"): v for name, v in state.items()
    }
    missing, unexpected = ours.load_state_dict(names, strict=False)
    assert not unexpected and all(name.endswith("num_batches_tracked") for name in missing)
    sides = ((33, 41), (17, 21), (9, 11), (5, 6))
    maps = [torch.randn(2, c, *size, generator=generator) for c, size in zip(CHANNELS, sides, strict=True)]
    with torch.no_grad():
        found, expected = ours.eval()(maps), theirs.eval()(maps)
    assert found.shape == expected.shape and expected.std() > 0.1
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()
