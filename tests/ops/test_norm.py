"""`norm` and `add_norm`: PyTorch's operations, the operator, its plain form. For the kernels they run
`triton_norm_interpreted.py`."""

from __future__ import annotations

import pytest
import timm
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

import ganglion  # noqa: F401
from ganglion.layers.basic import GroupNorm2d, LayerNorm2d, sum_and_norm
from ganglion.ops import BackendError, add_norm, norm
from tests.ops.norm_cases import NAMES, case, error, exact
from tests.ops.test_triton import needs_triton, run, version

FORMS = ["norm", "bare", "add", "scaled"]


@needs_triton
@pytest.mark.skipif(
    version("triton") < (3, 8) and version("numpy") >= (2, 4),
    reason="the interpreter of Triton before 3.8 fails on range() with NumPy 2.4 and later",
)
def test_the_kernels_in_the_interpreter():
    tests = "tests/ops/triton_norm_interpreted.py"
    done = run("-m", "pytest", "-q", "-p", "no:cacheprovider", tests, TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout and "skipped" not in done.stdout, done.stdout[-500:]


@pytest.fixture
def as_operator(monkeypatch):
    """The operator serves tensors of this machine, with its plain backend."""
    monkeypatch.setattr("ganglion.ops.norm_op._DEVICES", ("cpu",))
    monkeypatch.setenv("GANGLION_BACKEND", "torch")


@pytest.mark.parametrize("per_image", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_the_operator_is_what_pytorch_computes(form, per_image, as_operator, monkeypatch):
    args = [None if t is None else t.double() for t in case((2, 7, 6), form)]
    found, grads = exact(args, per_image)
    monkeypatch.setattr("ganglion.ops.norm_op._DEVICES", ())
    expected, expected_grads = exact(args, per_image)
    for f, e in zip(found, expected, strict=True):
        assert error(f, e) < 1e-12
    for name, f, e in zip(NAMES, grads, expected_grads, strict=True):
        assert f is None or error(f, e) < 1e-12, name


@pytest.mark.parametrize("per_image", [False, True])
def test_gradients_of_every_order(per_image, as_operator):
    x, add, scale, shift, weight, bias = [t.double().requires_grad_() for t in case((2, 3, 4), "scaled")]

    def both(x, add, scale, shift, weight, bias):
        return add_norm(x, add, weight, bias, scale=scale, shift=shift, per_image=per_image)

    args = (x, add, scale, shift, weight, bias)
    assert torch.autograd.gradcheck(both, args, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(both, args)
    assert torch.autograd.gradgradcheck(lambda *a: norm(*a, per_image=per_image), (x, weight, bias))


def test_transformations_see_pytorchs_own(as_operator):
    x, _, _, _, weight, bias = case((2, 3, 4), "norm")
    expected = F.layer_norm(x, (4,), weight, bias)
    tangent = torch.func.jvp(lambda t: norm(t, weight, bias), (x,), (x.cos(),))[1]
    assert (
        error(tangent, torch.func.jvp(lambda t: F.layer_norm(t, (4,), weight, bias), (x,), (x.cos(),))[1])
        < 1e-6
    )
    assert error(torch.func.vmap(lambda t: norm(t[None], weight, bias)[0])(x), expected) < 1e-6
    graph = torch.export.export(LayerNorm2d(3), (torch.randn(1, 3, 2, 2),)).graph
    names = {str(node.target) for node in graph.nodes}
    assert "aten.layer_norm.default" in names and not any("ganglion" in name for name in names)


@pytest.mark.parametrize("form", ["norm", "scaled"])
def test_opcheck(form):
    args = case((2, 3, 4), form)
    rest = (False, 1e-5, torch.float32, "torch")
    tests = ("test_schema", "test_faketensor")
    torch.library.opcheck(torch.ops.ganglion.add_norm, (*args, *rest), test_utils=tests)
    x, add, scale, _, weight, _ = args
    y, total, statistics = torch.ops.ganglion.add_norm(*args, *rest)
    kept = x if add is None else total
    given = (y.cos(), None, kept, None if scale is None else x, scale, weight, statistics, False)
    dtypes = (torch.float32, None if add is None else torch.float16)
    torch.library.opcheck(torch.ops.ganglion.add_norm_backward, (*given, *dtypes, "torch"), test_utils=tests)


def test_no_pixels_and_no_images(as_operator):
    for shape in ((0, 3, 4), (2, 0, 4)):
        (y, total), grads = exact(case(shape, "scaled"), False)
        assert y.shape == total.shape == shape
        assert all(g.shape == t.shape for g, t in zip(grads, case(shape, "scaled"), strict=True))


@pytest.mark.parametrize(
    ("change", "error_type", "said"),
    [
        ({"x": torch.zeros(2, 3)}, ValueError, r"x has shape \(2, 3\): expected \(B, L, C\)"),
        ({"x": torch.zeros(2, 3, 4, dtype=torch.int64)}, TypeError, "x has dtype torch.int64"),
        ({"add": torch.zeros(2, 3, 5)}, ValueError, r"add has shape \(2, 3, 5\): expected \(2, 3, 4\)"),
        ({"weight": torch.zeros(3)}, ValueError, r"weight has shape \(3,\): expected \(4,\)"),
        ({"scale": torch.zeros(4)}, ValueError, "scale and shift belong together"),
        ({"bias": torch.zeros(4, device="meta")}, ValueError, "bias is on meta, x on cpu"),
        ({"backend": "trition"}, ValueError, "trition"),
    ],
)
def test_bad_arguments(change, error_type, said):
    given = {"x": torch.zeros(2, 3, 4), "add": torch.zeros(2, 3, 4), "weight": None, "bias": None, **change}
    with pytest.raises(error_type, match=said):
        add_norm(**given)


def test_a_forced_backend_serves_or_says_why():
    with pytest.raises(BackendError, match="triton"):
        norm(torch.zeros(1, 2, 3), backend="triton")


@pytest.mark.parametrize("kind", [LayerNorm2d, GroupNorm2d])
def test_layers_and_residual_sums_use_it(kind, as_operator):
    layer = kind(6)
    torch.nn.init.normal_(layer.weight)
    x, branch = (torch.randn(2, 6, 3, 5).to(memory_format=torch.channels_last) for _ in range(2))
    scale, shift = torch.randn(6), torch.randn(6)
    found = sum_and_norm(x, branch, layer, scale, shift)
    assert found is not None
    total = x * scale.view(-1, 1, 1) + shift.view(-1, 1, 1) + branch
    assert error(found[0], total) < 1e-6
    expected = F.layer_norm(total, total.shape[1:]) if kind is GroupNorm2d else None
    if expected is None:
        expected = F.layer_norm(total.permute(0, 2, 3, 1), (6,)).permute(0, 3, 1, 2)
    expected = expected * layer.weight.view(-1, 1, 1) + layer.bias.view(-1, 1, 1)
    assert error(found[1], expected) < 1e-5 and error(layer(total), expected) < 1e-5
    assert all(t.is_contiguous(memory_format=torch.channels_last) for t in (*found, layer(total)))
    layer.register_forward_hook(lambda *args: None)
    assert sum_and_norm(x, branch, layer, scale, shift) is None


@pytest.mark.parametrize("name", ["test_vmamba", "test_sparx_mamba", "test_sparx_swin"])
def test_networks_compute_the_same_with_it(name, as_operator, monkeypatch):
    torch.manual_seed(0)
    network = timm.create_model(name, drop_path_rate=0.0)
    x = torch.randn(2, 3, 64, 64)

    def step():
        network.zero_grad()
        y = network(x)
        y.square().sum().backward()
        return y.detach(), torch.cat([p.grad.flatten() for p in network.parameters()])

    found = step()
    monkeypatch.setattr("ganglion.ops.norm_op._DEVICES", ())
    for f, e in zip(found, step(), strict=True):
        assert error(f, e) < 1e-5


def count_on_a_gpu(name: str) -> tuple[int, list]:
    """Operators of one forward on a GPU that is not there, under float16 autocast and without views; copies that
    change a layout."""
    from torch.utils._python_dispatch import TorchDispatchMode

    views = {"view", "permute", "transpose", "slice", "select", "unsqueeze", "expand", "detach", "t", "alias"}
    views |= {
        "split",
        "unbind",
        "squeeze",
        "split_with_sizes",
        "_unsafe_view",
        "unfold",
        "as_strided",
        "new_empty",
        "diagonal",
    }
    counted, copies = [], []

    class Count(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if func.namespace in ("aten", "ganglion") and func._overloadname != "":
                operator = func.overloadpacket.__name__
                if operator not in views and isinstance(out, (torch.Tensor, tuple)):
                    counted.append(operator)
                # Maps are square; windows, which attention cuts out, are not.
                is_map = operator in ("clone", "_to_copy") and out.ndim == 4 and out.shape[2] == out.shape[3]
                if is_map and args[0].stride() != out.stride():
                    copies.append((tuple(out.shape), args[0].stride(), out.stride()))
            return out

    network = timm.create_model(name).eval().to(memory_format=torch.channels_last)
    with FakeTensorMode():
        state = {
            key: torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="cuda")
            for key, t in (*network.named_parameters(), *network.named_buffers())
        }
        x = torch.empty(2, 3, 224, 224, device="cuda").to(memory_format=torch.channels_last)
        torch.set_autocast_enabled("cuda", True)
        try:
            with torch.no_grad(), Count():
                torch.func.functional_call(network, state, (x,))
        finally:
            torch.set_autocast_enabled("cuda", False)
    return len(counted), copies


@pytest.mark.parametrize(
    "name, most", [("vmamba_tiny_s1l8", 330), ("sparx_mamba_tiny", 738), ("sparx_swin_tiny", 832)]
)
def test_kernels_of_a_forward_on_a_gpu(name, most):
    """No copy changes a layout, and there are no more kernels than now. ConvNeXt-T has 313."""
    operators, copies = count_on_a_gpu(name)
    assert not copies
    assert operators <= most
