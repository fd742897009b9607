"""Whatever is chosen by a name knows all of its names and no other."""

from __future__ import annotations

from typing import get_args

import pytest

from ganglion.layers.aggregators import AggregatorName, make_aggregator
from ganglion.layers.basic import Act, Norm, make_act, make_norm
from ganglion.layers.ss2d import SS2D, OutNorm, Scan, SSMInit
from ganglion.layers.stem import Downsample, conv_stem, make_downsample

CHOOSERS = {
    "norm": (Norm, lambda name: make_norm(name, 8)),
    "activation": (Act, make_act),
    "downsampling": (Downsample, lambda name: make_downsample(name, 8, 16, norm="ln")),
    "norm of the downsampling": (Norm, lambda name: make_downsample("conv3", 8, 16, norm=name)),
    "aggregator": (AggregatorName, lambda name: make_aggregator(name, 8, 2, 16)),
    "act": (Act, lambda name: SS2D(8, act=name)),
    "out_norm": (OutNorm, lambda name: SS2D(8, out_norm=name)),
    "scan": (Scan, lambda name: SS2D(8, scan=name)),
    "ssm_init": (SSMInit, lambda name: SS2D(8, ssm_init=name)),
    "reset": (SSMInit, lambda name: SS2D(8).reset_scan_parameters(name)),
}


@pytest.mark.parametrize("chooser", CHOOSERS)
def test_every_name_is_known_and_no_other(chooser):
    literal, choose = CHOOSERS[chooser]
    for name in get_args(literal):
        choose(name)
    for name in ("layernorm", get_args(literal)[0].upper(), "", None, 0):
        with pytest.raises(ValueError, match=r"unknown .*Valid: ") as info:
            choose(name)
        assert all(valid in str(info.value) for valid in get_args(literal))


@pytest.mark.parametrize(
    ("choose", "nearest"),
    [
        (lambda: make_downsample("conv5", 8, 16, norm="ln"), "conv"),
        (lambda: make_aggregator("dcma", 8, 2, 16), "dmca"),
        (lambda: SS2D(8, scan="cross"), "cross2d"),
        (lambda: SS2D(8, out_norm="dwconv"), "dwconv3"),
        (lambda: SS2D(8, backend="tritn"), "triton"),
    ],
)
def test_the_nearest_name_is_offered(choose, nearest):
    with pytest.raises(ValueError, match=f"Did you mean '{nearest}"):
        choose()


@pytest.mark.parametrize("patch_size", [0, 1, 3, -2])
def test_a_stem_cannot_have_odd_patches(patch_size):
    with pytest.raises(ValueError, match=rf"patch_size is {patch_size}: expected an even"):
        conv_stem(3, 8, norm="ln", patch_size=patch_size)
