"""What timm's networks take from the tools around them, ours take: layers are torch's own, and modules are called."""

from __future__ import annotations

import copy
import io

import pytest
import timm
import torch
from timm.models import FeatureListNet
from timm.utils import reparameterize_model
from torch import nn
from torch.func import functional_call, vmap
from torch.nn.modules.utils import _reverse_repeat_tuple
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from ganglion.layers.basic import PatchMerging, patches
from ganglion.layers.block import Block
from ganglion.layers.depthwise import DepthwiseConv2d, ResidualDWConv
from ganglion.ops import emulation
from tests.tolerances import relative_rms

FAMILIES = ["test_vmamba", "test_sparx_mamba", "test_sparx_swin"]


@pytest.fixture(params=FAMILIES)
def model(request):
    torch.manual_seed(0)
    return timm.create_model(request.param, num_classes=7).eval()


def image(*size: int, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(1))


def linear_layers(model: nn.Module) -> int:
    return sum(type(m) is nn.Linear for m in model.modules())


def test_dynamic_quantization_finds_every_linear_layer(model):
    found = linear_layers(model)
    assert found > 15 and found == sum(isinstance(m, nn.Linear) for m in model.modules())
    quantized = torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {nn.Linear}, dtype=torch.qint8)
    assert not any(isinstance(m, nn.Linear) for m in quantized.modules())
    x = image(64, 48)
    with torch.no_grad():
        assert relative_rms(quantized(x), model(x)) < 0.1


@pytest.mark.filterwarnings("ignore")
def test_static_quantization_rounds_no_norm():
    """Norms and changes of form are nodes that FX leaves alone: rounding them costs a third more error."""
    from torch.ao.quantization import get_default_qconfig_mapping
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

    torch.manual_seed(0)
    network = timm.create_model("test_sparx_mamba", num_classes=10).eval()
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = network(x)
        prepared = prepare_fx(network, get_default_qconfig_mapping("x86"), (x,))
        prepared(x)
        found = convert_fx(prepared)(x)
    assert (found - expected).abs().max() < 0.15 * expected.abs().max()


def test_lora_begins_with_the_network_as_it_is(model):
    peft = pytest.importorskip("peft")
    x = image(64, 48)
    expected = model(x).detach()
    lora = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules="all-linear")).eval()
    torch.testing.assert_close(lora(x), expected)
    lora(x).square().sum().backward()
    grads = {n: p.grad for n, p in lora.named_parameters() if p.requires_grad}
    assert len(grads) > 30 and all(g is not None for g in grads.values())


def test_the_classifier_is_the_last_child_and_children_run_in_turn(model):
    x = image(64, 48)
    with torch.no_grad():
        torch.testing.assert_close(nn.Sequential(*model.children())(x), model(x))
        features = nn.Sequential(*list(model.children())[:-1])(x)
        torch.testing.assert_close(features, model.forward_features(x))


def test_a_hook_on_the_stages_sees_the_last_map(model):
    seen = []
    model.stages.register_forward_hook(lambda module, args, y: seen.append(tuple(y.shape)))
    with torch.no_grad():
        model(image(64, 48))
    assert seen == [(2, model.num_features, 2, 2)]


def test_a_block_can_be_replaced_by_what_takes_one_argument(model):
    block = model.stages[2].blocks[-1]
    seen = []
    block.register_forward_hook(lambda module, args, y: seen.append((len(args), y)))
    x = image(64, 48)
    with torch.no_grad():
        expected = model(x)
        ((n_args, y),) = seen
        model.stages[2].blocks[-1] = nn.Module()
        model.stages[2].blocks[-1].forward = lambda features: y
        torch.testing.assert_close(model(x), expected)
    assert n_args == 1


def test_ptflops_agrees_with_torch(model):
    ptflops = pytest.importorskip("ptflops")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(image(64, 64, batch=1))
    macs, _ = ptflops.get_model_complexity_info(
        model, (3, 64, 64), as_strings=False, print_per_layer_stat=False, backend="pytorch", ost=io.StringIO()
    )
    counted = {str(op): flops for op, flops in counter.get_flop_counts()["Global"].items()}
    products = sum(
        flops for op, flops in counted.items() if not op.startswith("ganglion")
    )  # scans it cannot know
    assert macs == pytest.approx(products / 2, rel=0.2)


def test_thop_counts_the_layers(model):
    """It knows layers by their exact class: what it finds are torch's own."""
    thop = pytest.importorskip("thop")
    layers = [m for m in model.modules() if type(m) in (nn.Linear, nn.Conv2d, nn.LayerNorm)]
    known = sum(p.numel() for layer in layers for p in layer.parameters())
    _, found = thop.profile(copy.deepcopy(model), (image(64, 64, batch=1),), verbose=False)
    assert found >= known > 0.5 * sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("kind", [DepthwiseConv2d, ResidualDWConv])
def test_convolutions_heed_their_padding_mode(model, kind):
    x = image(64, 48)
    convolutions = [m for m in model.modules() if type(m) is kind and m.padding != (0, 0)]
    with torch.no_grad():
        expected = model(x)
        for module in convolutions:
            module.padding_mode = "circular"
            module._reversed_padding_repeated_twice = list(_reverse_repeat_tuple(module.padding, 2))
        assert torch.equal(model(x), expected) == (not convolutions)


def test_what_is_fused_computes_the_same(model):
    x = image(64, 48)
    with torch.no_grad():
        torch.testing.assert_close(reparameterize_model(model)(x), model(x))


@pytest.mark.parametrize("name", FAMILIES)
def test_pyramids_of_every_kind_and_their_scripts(name):
    x = image(64, 48)
    torch.manual_seed(0)
    pyramid = timm.create_model(name, features_only=True).eval()
    expected = pyramid(x)
    scripted = torch.jit.script(pyramid)
    for found, right in zip(scripted(x), expected, strict=True):
        torch.testing.assert_close(found, right)
    for kind in ("list", "dict", "hook"):
        torch.manual_seed(0)
        found = timm.create_model(name, features_only=True, feature_cls=kind).eval()(x)
        for a, b in zip(found.values() if isinstance(found, dict) else found, expected, strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("kind", ["list", "dict", "hook", "fx", FeatureListNet])
@pytest.mark.parametrize("name", FAMILIES)
def test_pyramids_that_would_drop_the_norms_of_their_maps_are_refused(name, kind):
    with pytest.raises(ValueError, match="without out_norms: expected 'getter', or none"):
        timm.create_model(name, features_only=True, out_norms=True, feature_cls=kind)


@pytest.mark.parametrize("name", FAMILIES)
def test_pyramids_of_the_network_keep_the_norms_of_their_maps(name):
    for kind in ({}, {"feature_cls": "getter"}):
        pyramid = timm.create_model(name, features_only=True, out_norms=True, **kind).eval()
        with torch.no_grad():
            maps = pyramid(image(64, 48))
        assert len(maps) == 4
        for y in maps:  # the norms' weights are ones
            torch.testing.assert_close(y.mean(1), torch.zeros_like(y[:, 0]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_checkpointing_of_pyramids_updates_statistics_once(name):
    results = []
    for recompute in (False, True):
        torch.manual_seed(0)
        pyramid = timm.create_model(name, features_only=True).train()
        pyramid.set_grad_checkpointing(recompute)
        sum(y.square().mean() for y in pyramid(image(64, 48))).backward()
        assert all(m.momentum == 0.1 for m in pyramid.modules() if isinstance(m, nn.BatchNorm2d))
        results.append(
            {**{n: p.grad for n, p in pyramid.named_parameters()}, **dict(pyramid.named_buffers())}
        )
    for key, value in results[0].items():
        torch.testing.assert_close(results[1][key], value, msg=key)


@pytest.mark.parametrize("stride", [8, 16])
@pytest.mark.parametrize("name", FAMILIES)
def test_output_stride(name, stride):
    dense = timm.create_model(name, features_only=True, output_stride=stride).eval()
    strides = [min(s, stride) for s in (4, 8, 16, 32)]
    assert dense.feature_info.reduction() == strides
    with torch.no_grad():
        maps = dense(image(96, 64))
    assert [tuple(y.shape[2:]) for y in maps] == [(96 // s, 64 // s) for s in strides]
    usual = timm.create_model(name, features_only=True)
    assert {n: p.shape for n, p in dense.state_dict().items()} == {
        n: p.shape for n, p in usual.state_dict().items()
    }


def test_output_stride_of_another_size_is_refused():
    with pytest.raises(ValueError, match="output_stride is 4: expected 32, 16 or 8"):
        timm.create_model("test_vmamba", output_stride=4)


@pytest.mark.parametrize("downsample", ["conv3", "merge"])
def test_a_dilated_network_has_the_map_of_a_strided_one_at_every_second_pixel(downsample):
    """Without mixers nothing looks further than the convolutions."""
    torch.manual_seed(0)
    options = {"ssm_ratio": 0.0, "downsample": downsample, "pos_embed": False, "features_only": True}
    usual = timm.create_model("test_vmamba", **options).eval()
    dense = timm.create_model("test_vmamba", **options, output_stride=8).eval()
    dense.load_state_dict(usual.state_dict())
    x = image(128, 96)
    with torch.no_grad():
        for y, z, step in zip(usual(x), dense(x), (1, 1, 2, 4), strict=True):
            torch.testing.assert_close(z[:, :, ::step, ::step], y)


def test_patches_are_those_of_swin():
    x = image(5, 6)
    found = patches(x, 2, 1)
    padded = nn.functional.pad(x, (0, 0, 0, 1))
    corners = [padded[:, :, i::2, j::2] for j in (0, 1) for i in (0, 1)]
    assert torch.equal(found, torch.cat(corners, 1))
    assert PatchMerging(3, 4, norm="ln")(x).shape == (2, 4, 3, 3)


def test_vmap_over_images(model):
    x = image(32, 48)
    with torch.no_grad():
        found = vmap(lambda one: model(one[None])[0])(x)
        torch.testing.assert_close(found, model(x), rtol=1e-4, atol=1e-5)


def test_per_sample_gradients_of_windows():
    model = timm.create_model("test_sparx_swin", num_classes=7).eval()
    parameters = dict(model.named_parameters())
    x = image(32, 32)

    def loss(values, one):
        return functional_call(model, values, (one[None],)).square().sum()

    found = vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x)
    for i in range(2):
        right = torch.autograd.grad(loss(parameters, x[i]), list(parameters.values()))
        for a, b in zip(found.values(), right, strict=True):
            torch.testing.assert_close(a[i], b, rtol=1e-3, atol=1e-4)


class Products(TorchDispatchMode):
    """Notes the dtypes of matrix products and convolutions."""

    def __init__(self):
        super().__init__()
        self.dtypes = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        aten = torch.ops.aten
        if func.overloadpacket in (aten.mm, aten.addmm, aten.linear, aten.convolution):
            self.dtypes.add(args[0].dtype)
        return func(*args, **(kwargs or {}))


def test_emulated_half_precision_is_computed_in_float32(monkeypatch):
    model = timm.create_model("test_vmamba").eval().bfloat16()
    x = image(64, 48).bfloat16()
    found = []
    for dtype in (torch.float16, torch.bfloat16):
        monkeypatch.setattr(emulation, "_EMULATED", (dtype,))
        with torch.no_grad(), Products() as products:
            found.append(model.forward_features(x))
        assert products.dtypes == {torch.bfloat16 if dtype == torch.float16 else torch.float32}
    assert found[1].dtype == torch.bfloat16
    assert relative_rms(found[1], found[0]) < 0.1


def test_names_of_an_earlier_version_load():
    model = timm.create_model("test_sparx_mamba")
    old = {
        n.replace(".in_proj.fusion.", ".in_proj.fuse."): torch.zeros_like(t)
        for n, t in model.state_dict().items()
    }
    assert old.keys() != model.state_dict().keys()
    model.load_state_dict(old)
    assert not any(p.any() for p in model.parameters())


def test_no_map_with_the_channels_last_is_kept_for_the_backward_pass(model):
    """`torch.compile` would lay it out with H innermost. Tokens, and (B, C, H, W), keep their memory."""
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        model.train()(image(64, 96, batch=3))
    sides = [(64 // stride, 96 // stride) for stride in (4, 8, 16, 32)]
    assert any(t.ndim == 4 and t.shape[2:] in sides for t in kept)
    assert [t.shape for t in kept if t.ndim == 4 and t.shape[1:3] in sides and t.shape[3] > 1] == []


def test_blocks_of_one_shape_share_a_compiled_graph():
    """Compiling block by block (docs/gpu.md) is cheaper than the whole network only if they do."""
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch.compiler.reset()
    network = timm.create_model("vmamba_nano").eval()
    blocks = [module for module in network.modules() if isinstance(module, Block)]
    x = image(64, 64)
    with torch.no_grad():
        expected = network(x)
        for block in blocks:
            block.compile(backend=backend, dynamic=False)
        torch.testing.assert_close(network(x), expected)
    torch.compiler.reset()
    assert len(graphs) == 4 < len(blocks)
