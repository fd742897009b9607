"""Activation maps against golden data, and in memory that is linear in the pixels."""

from __future__ import annotations

import warnings

import pytest
import timm
import torch
from torch import nn

from ganglion.analysis import scan_map
from ganglion.analysis.scan_maps import diagonal_map, in_layer, walks_of
from ganglion.analysis.scans import layer_inputs, recorded, scan_layers, scans_of
from ganglion.layers.ss2d import SS2D
from tests.golden_data import load, vector

MODES = ("CB", "CwBw", "CwBdtw", "ww")
BOUNDS = {torch.float64: 1e-12, torch.float32: 1e-5}
GOLDEN = "analysis/attnmap"


def golden_mixer(name: str, case: str) -> tuple[SS2D, torch.Tensor]:
    golden = load(name)
    meta = golden.case(case)
    dim, side = meta["d_model"], meta["size"]
    height, width = (side, side) if isinstance(side, int) else side
    mixer = SS2D(dim, d_state=meta["d_state"], ssm_ratio=meta["ssm_ratio"], scan=meta.get("scan", "cross2d"))
    state = {key.replace("conv2d", "conv"): value for key, value in golden.state_dict(case).items()}
    state["dt_projs_bias"] += meta.get("dt_bias_add", 0.0)
    mixer.load_state_dict(state)
    return mixer, vector((dim, height, width), meta["input_seed"])


def close(found, expected, dtype):
    assert found.shape == expected.shape and found.dtype == dtype
    assert (found.double() - expected).abs().max() <= BOUNDS[dtype] * expected.abs().max()


@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("case", load(GOLDEN).cases())
def test_golden(case, dtype):
    golden = load(GOLDEN)
    mixer, x = golden_mixer(GOLDEN, case)
    x = x.to(dtype)
    height, width = x.shape[1:]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for mode in MODES:
            for route in (0, 1, 2, 3, None):
                expected = golden[f"{case}.{mode}." + ("all" if route is None else f"a{route}")]
                close(scan_map(mixer, x[None], mode, route), expected, dtype)
                for row in range(height):
                    pixel, query = row * width, (row, 0)
                    reads = scan_map(mixer, x, mode, route, query=query)
                    close(reads.flatten(), expected[pixel], dtype)
                    read_by = scan_map(mixer, x, mode, route, query=query, reads=False)
                    close(read_by.flatten(), expected[:, pixel], dtype)
        close(diagonal_map(mixer, x).flatten(), golden[f"{case}.CwBdtw.all"].diagonal(), dtype)
    found = walks_of(mixer, x[None])
    close(found[1].matrix("CwBw"), golden[f"{case}.CwBw.ao1"], dtype)
    for k, walk in enumerate(found):
        close(walk.channels(slice(1)).matrix(), golden[f"{case}.CwBdtw.d0.ao{k}"], dtype)
    (scan,) = scans_of(mixer, x[None])
    close(scan.x.flatten(0, 2), golden[f"{case}.x"], dtype)


@pytest.mark.parametrize("case", load("vmamba/attnmap").cases())
def test_maps_of_the_published_network(case):
    golden = load("vmamba/attnmap")
    mixer, x = golden_mixer("vmamba/attnmap", case)
    for mode in MODES:
        for route in (0, 1, 2, 3, None):
            expected = golden[f"{case}.{mode}." + ("all" if route is None else f"a{route}") + ".norm0"]
            found = scan_map(mixer.double(), x.double(), mode, route)
            assert (found - expected).abs().max() <= 1e-6 * expected.abs().max()
        for number, how in enumerate(("none", "minmax", "max")):
            maps = in_layer(mixer.double(), x[None].double(), [], "matrix", [mode], (0, 0), how).maps[0]
            mean = maps[-1] / 4 if how == "none" else maps[-1]
            expected = golden[f"{case}.{mode}.nall.norm{number}"]
            assert (mean - expected).abs().max() <= 1e-6 * expected.abs().max()


def test_a_cascade_scans_columns_over_what_rows_gave():
    """Each route's walk over what that route is given makes what the mixer makes."""
    torch.manual_seed(0)
    mixer = SS2D(6, scan="cascade2d", d_state=2, out_norm="none", backend="torch").double()
    x = torch.randn(1, 6, 3, 4, dtype=torch.float64)
    seen = []
    mixer.out_norm.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        mixer(x, [])
    scans = scans_of(mixer, x)
    found = walks_of(mixer, x)
    assert [scan.routes[0].code for scan in scans] == mixer.routes
    rows = scans[2].x.flatten(1, 2)[0]
    outputs = []
    for scan, walk in zip(scans[2:], found[2:], strict=True):
        y = torch.empty_like(rows)
        y[walk.order] = walk.output(rows[walk.order])[0]
        outputs.append((y + scan.D[0] * rows).unflatten(0, (3, 4)))
    torch.testing.assert_close(outputs[0] + outputs[1].flip(0), seen[0][0].permute(1, 2, 0))
    assert scan_map(mixer, x).shape == (12, 12)


class Allocations(torch.utils._python_dispatch.TorchDispatchMode):
    """The largest tensor that anything makes, in bytes."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for t in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(t, torch.Tensor):
                self.largest = max(self.largest, t.untyped_storage().nbytes())
        return out


def test_one_pixel_takes_memory_linear_in_the_pixels():
    """VMamba-T's first stage on 64 x 64: the full map has 67 MB."""
    mixer = SS2D(96, ssm_ratio=2.0)
    x = torch.randn(1, 96, 64, 64)
    for reads in (True, False):
        with Allocations() as seen:
            assert scan_map(mixer, x, query=(40, 9), reads=reads).shape == (64, 64)
        assert seen.largest <= 4 * 64 * 64 * 4 * 192


def test_layers_of_a_network():
    network = timm.create_model("test_sparx_mamba").train()
    x = torch.randn(2, 3, 64, 96)
    layers, inputs = scan_layers(network), layer_inputs(network, x)
    assert list(layers) == list(inputs) and network.training and network.head.fc.weight.requires_grad
    name = "stages.2.blocks.3.mixer"
    taken, earlier = inputs[name]
    assert taken.shape[2:] == (4, 6) and len(earlier) > 0
    found = scan_map(layers[name], taken[:1], query=(1, 2), earlier=[e[:1] for e in earlier])
    assert found.shape == (4, 6) and network.training
    with pytest.raises(ValueError, match=r"expected earlier=\[\.\.\.\]"):
        scan_map(layers[name], taken[:1])
    with pytest.raises(ValueError, match=r"ResNet has no scans.*receptive field"):
        scan_layers(timm.create_model("test_resnet"))


@pytest.mark.parametrize("gradients", [False, True])
def test_recording_sees_calls_and_changes_none(gradients):
    """The same kernels run as without: what is recorded between layers would cost as much as the layers."""
    torch.manual_seed(0)
    network = timm.create_model("test_vmamba").eval()
    x = torch.randn(1, 3, 48, 80)
    with torch.set_grad_enabled(gradients):
        with torch.profiler.profile() as alone:
            expected = network(x)
        with torch.profiler.profile() as watched, recorded(network) as scans:
            found = network(x)
    assert torch.equal(found, expected)
    assert list(scans) == list(scan_layers(network)) and all(
        len(of_layer) == 1 for of_layer in scans.values()
    )

    def calls(profile):
        names = [
            event.name for event in profile.events() if event.name.startswith(("ganglion", "aten::conv"))
        ]
        return sorted(names)

    assert calls(watched) == calls(alone)


def test_bad_input():
    mixer, x = SS2D(8), torch.randn(1, 8, 3, 4)
    with pytest.raises(ValueError, match=r"unknown mode 'cb'.*CB"):
        scan_map(mixer, x, "cb")
    with pytest.raises(ValueError, match=r"\(2, 8, 3, 4\): expected one image"):
        scan_map(mixer, x.expand(2, -1, -1, -1))
    with pytest.raises(IndexError, match=r"query \(3, 0\).*3 x 4"):
        scan_map(mixer, x, query=(3, 0))
    with pytest.raises(IndexError, match=r"route 4: expected 0\.\.3"):
        scan_map(mixer, x, route=4)
    with pytest.raises(TypeError, match="Linear has no scan"):
        scan_map(nn.Linear(8, 8), x)
    with pytest.raises(TypeError, match="bfloat16"):
        scan_map(mixer, x.bfloat16())
    with pytest.raises(ValueError, match=r"1073741824 bytes \(1\.1 GB\).*query.*65536 bytes"):
        scan_map(SS2D(1), torch.zeros(1, 1, 128, 128))
