"""What every network of the library promises, on the tiny one of each family."""

from __future__ import annotations

import inspect
import json
import types

import pytest
import safetensors.torch
import timm
import torch
from timm.optim import param_groups_layer_decay

import ganglion
from ganglion.models.registry import is_own
from tests.tolerances import RELATIVE_RMS_COMPOSED, relative_rms

FAMILIES = ["test_vmamba", "test_sparx_mamba", "test_sparx_swin"]
SIZES = [(96, 96), (225, 193), (17, 33), (16, 16), (5, 4)]


@pytest.fixture(params=FAMILIES)
def model(request):
    torch.manual_seed(0)
    return timm.create_model(request.param, num_classes=7).eval()


def picture(*size: int, batch: int = 2, channels: int = 3) -> torch.Tensor:
    return torch.randn(batch, channels, *size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("size", SIZES)
def test_any_size_runs_and_scripts_and_traces(model, size):
    x = picture(*size)
    with torch.no_grad():
        y = model(x)
        assert y.shape == (2, 7) and y.isfinite().all()
        torch.testing.assert_close(torch.jit.script(model)(x), y)
        torch.testing.assert_close(torch.fx.symbolic_trace(model)(x), y)


def test_compiles_in_one_graph_forward_and_backward(model):
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x = picture(64, 48).requires_grad_()
    expected = torch.autograd.grad(model(x).square().sum(), [x, *model.parameters()])
    found = torch.autograd.grad(compiled(x).square().sum(), [x, *model.parameters()])
    for a, b in zip(found, expected, strict=True):
        assert relative_rms(a, b) < 1e-4


def test_exports_for_images_of_one_size():
    model = timm.create_model("test_sparx_swin", num_classes=7).eval()
    program = torch.export.export(
        model, (picture(64, 48),), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=64)},)
    )
    x = picture(64, 48, batch=5)
    with torch.no_grad():
        torch.testing.assert_close(program.module()(x), model(x))


@pytest.mark.parametrize(
    ("name", "pyramid", "least"),
    [
        ("test_vmamba", False, 4),
        ("test_sparx_mamba", False, 4),
        ("test_sparx_swin", False, 4),
        ("test_sparx_mamba", True, 33),  # the sides of maps stay symbols, which are never 1
    ],
)
def test_one_exported_program_serves_any_batch_and_size(name, pyramid, least):
    """From one patch up, one image included."""
    torch.manual_seed(0)
    model = timm.create_model(name, features_only=pyramid).eval()
    axes = {0: torch.export.Dim("batch", min=1), 2: torch.export.Dim("height", min=least)}
    axes[3] = torch.export.Dim("width", min=least)
    program = torch.export.export(model, (picture(96, 128),), dynamic_shapes=({**axes},)).module()
    for batch, height, width in ((1, 33, 33), (1, least, least), (2, 64, 40), (3, 512, 384)):
        x = torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            torch.testing.assert_close(program(x), model(x), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("channels", [1, 4, 13])
@pytest.mark.parametrize("name", FAMILIES)
def test_any_number_of_channels(name, channels):
    model = timm.create_model(name, in_chans=channels, num_classes=2)
    assert model(picture(32, 40, channels=channels)).shape == (2, 2)


def test_every_parameter_gets_a_finite_gradient(model):
    model.train()(picture(96, 64)).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_checkpointing_changes_nothing(model):
    x = picture(64, 64)
    plain = torch.autograd.grad(model(x).square().sum(), list(model.parameters()))
    model.set_grad_checkpointing()
    saved = torch.autograd.grad(model(x).square().sum(), list(model.parameters()))
    for a, b in zip(saved, plain, strict=True):
        torch.testing.assert_close(a, b)


def test_the_pyramid_has_four_maps_at_their_strides(model):
    x = picture(96, 64)
    pyramid = timm.create_model(model.default_cfg["architecture"], features_only=True).eval()
    assert pyramid.feature_info.reduction() == [4, 8, 16, 32]
    maps = pyramid(x)
    for info, features in zip(pyramid.feature_info.info, maps, strict=True):
        assert features.shape[1:] == (info["num_chs"], 96 // info["reduction"], 64 // info["reduction"])
    two = timm.create_model(model.default_cfg["architecture"], features_only=True, out_indices=(0, 2)).eval()
    two.load_state_dict({k: v for k, v in pyramid.state_dict().items() if k in two.state_dict()})
    for a, b in zip(two(x), (maps[0], maps[2]), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", FAMILIES)
def test_patches_of_two_pixels(name):
    usual, small = (timm.create_model(name, features_only=True, patch_size=p).eval() for p in (4, 2))
    assert small.feature_info.reduction() == [2, 4, 8, 16]
    behind = [{k: v.shape for k, v in m.state_dict().items() if "stages" in k} for m in (usual, small)]
    assert behind[0] == behind[1]
    with torch.no_grad():
        assert [tuple(m.shape[2:]) for m in small(picture(50, 34))] == [(25, 17), (13, 9), (7, 5), (4, 3)]
    with pytest.raises(ValueError, match="patch_size"):
        timm.create_model(name, patch_size=3)


def test_out_norms_normalise_the_pyramid_only(model):
    name = model.default_cfg["architecture"]
    torch.manual_seed(0)
    pyramid = timm.create_model(name, features_only=True, out_norms=True).eval()
    maps = pyramid(picture(96, 64))
    for features in maps:
        channels = features.permute(0, 2, 3, 1)
        torch.testing.assert_close(channels.mean(-1), torch.zeros(channels.shape[:3]), atol=1e-5, rtol=0)
    torch.manual_seed(0)
    raw = timm.create_model(name, features_only=True).eval()
    raw.load_state_dict({k: v for k, v in pyramid.state_dict().items() if "out_norms" not in k})
    last = raw(picture(96, 64))[3]
    norm = pyramid.model.out_norms[3]
    torch.testing.assert_close(norm(last), maps[3])


def test_half_precision_in_half_precision_out(model):
    x = picture(64, 64)
    with torch.no_grad():
        exact = model(x)
        half = model.bfloat16()(x.bfloat16())
    assert half.dtype == torch.bfloat16
    assert relative_rms(half, exact) < RELATIVE_RMS_COMPOSED[torch.bfloat16]


def test_autocast_trains(model):
    with torch.autocast("cpu", torch.bfloat16):
        loss = model.train()(picture(64, 64)).float().square().sum()
    loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.filterwarnings("ignore:ganglion.*x is torch.float64")
def test_float32_is_near_float64(model):
    x = picture(96, 64)
    with torch.no_grad():
        single = model(x)
        assert relative_rms(single, model.double()(x.double())) < RELATIVE_RMS_COMPOSED[torch.float32]


def test_threads_do_not_change_the_result(model):
    x, before = picture(96, 96), torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            with torch.no_grad():
                results.append(model(x))
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(*results, atol=1e-5, rtol=1e-5)


def test_sliced_hidden_maps_give_the_same_result(monkeypatch, model):
    import ganglion.layers.mlp as mlp

    x = picture(96, 96, batch=3)
    with torch.inference_mode():
        whole = model(x)
        monkeypatch.setattr(mlp, "_WHOLE", 0)
        monkeypatch.setattr(mlp, "_WHOLE_CONV", 0)
        monkeypatch.setattr(mlp, "_SLICE", 4096)
        torch.testing.assert_close(model(x), whole)


def test_an_empty_batch_gives_an_empty_result(model):
    assert model(torch.zeros(0, 3, 64, 64)).shape == (0, 7)


def test_nan_in_an_image_stays_in_that_image(model):
    x = picture(64, 64)
    x[0, 0, 3, 5] = float("nan")
    y = model(x)
    assert y[0].isnan().any() and y[1].isfinite().all()


def test_one_pixel_runs_and_less_than_a_patch_is_explained():
    for name in ("test_vmamba", "test_sparx_mamba"):
        assert timm.create_model(name, num_classes=2).eval()(picture(1, 1)).isfinite().all()
    patch = timm.create_model("test_vmamba", stem="patch").eval()
    with pytest.raises(ValueError, match="a map of 3 x 9: this layer needs at least 4 x 4"):
        patch(picture(3, 9))


def test_layer_decay_groups_cover_every_parameter(model):
    groups = param_groups_layer_decay(model, weight_decay=0.05, layer_decay=0.8)
    grouped = {id(p) for group in groups for p in group["params"]}
    assert grouped == {id(p) for p in model.parameters()}
    scales = sorted({group["lr_scale"] for group in groups})
    assert scales[-1] == 1.0 and len(scales) > 5


def test_weight_decay_as_published(model):
    names = dict(model.named_parameters())
    assert model.no_weight_decay() == {n for n in names if n.startswith("pos_embed")}
    assert all(p.ndim == 2 for n, p in names.items() if n.endswith(("A_logs", "dt_projs_bias")))


def test_a_saved_model_loads_from_its_folder(model, tmp_path):
    name = model.default_cfg["architecture"]
    safetensors.torch.save_file(model.state_dict(), tmp_path / "model.safetensors")
    config = {"architecture": name, "num_classes": 7, "pretrained_cfg": {"num_classes": 7}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, num_classes=7).eval()
    x = picture(64, 64)
    torch.testing.assert_close(again(x), model(x))


def test_every_registered_network_is_listed():
    names = ganglion.list_models()
    assert len(names) == len(set(names)) > 40
    assert set(ganglion.list_models("sparx_swin*")) >= {"sparx_swin_tiny", "sparx_swin_base"}


def test_every_network_is_a_function_that_can_be_found():
    """By its name in a file: importable, documented, and defined where a search for `def NAME` leads."""
    for name in ganglion.list_models():
        function = timm.model_entrypoint(name)
        module = inspect.getmodule(function)
        assert getattr(module, name) is function and function.__doc__
        assert inspect.getsource(module).count(f"\ndef {name}(") == 1, name


def test_a_network_of_another_library_is_not_ours():
    assert is_own("vmamba_nano") and is_own("sparx_mamba_tiny_dsn")
    assert not is_own("resnet18") and not is_own("no_such_model")
    entry = timm.models._registry._model_entrypoints  # a third family of ours, which no list names
    try:
        made = types.FunctionType(
            (lambda pretrained=False: None).__code__, {"__name__": "ganglion.models.third"}
        )
        entry["third_tiny"] = made
        timm.models._registry._model_to_module["third_tiny"] = "third"
        assert is_own("third_tiny")
    finally:
        del entry["third_tiny"], timm.models._registry._model_to_module["third_tiny"]
