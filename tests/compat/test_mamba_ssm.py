"""The stand-ins, used as code that is not ours uses the packages."""

from __future__ import annotations

import importlib
import subprocess
import sys
import types

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ganglion.compat import mamba_ssm as compat
from ganglion.ops import selective_scan_reference
from tests.tolerances import assert_close

pytestmark = pytest.mark.filterwarnings(
    "ignore:ganglion. selective_scan runs on the slower backend"
)  # float64


@pytest.fixture
def installed():
    compat.install()
    yield
    compat.uninstall()


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def scan_inputs(dtype: torch.dtype = torch.float64, groups: int = 2) -> dict[str, Tensor]:
    """Of a scan over 2 images, 6 channels, 7 positions, 3 states."""
    return {
        "u": normal(2, 6, 7, seed=1, dtype=dtype),
        "delta": normal(2, 6, 7, seed=2, dtype=dtype),
        "A": -normal(6, 3, seed=3).abs().to(torch.promote_types(dtype, torch.float32)),
        "B": normal(2, groups, 3, 7, seed=4, dtype=dtype),
        "C": normal(2, groups, 3, 7, seed=5, dtype=dtype),
        "D": normal(6, seed=6).to(torch.promote_types(dtype, torch.float32)),
        "z": normal(2, 6, 7, seed=7, dtype=dtype),
        "delta_bias": normal(6, seed=8).to(torch.promote_types(dtype, torch.float32)),
    }


def test_every_name_that_others_import(installed):
    code = """
from mamba_ssm import Mamba
from mamba_ssm.modules.mamba_simple import Mamba as M
from mamba_ssm.ops.selective_scan_interface import selective_scan_fn, selective_scan_ref, mamba_inner_fn
from mamba_ssm.ops.selective_scan_interface import mamba_inner_ref, mamba_inner_fn_no_out_proj, bimamba_inner_fn
from causal_conv1d import causal_conv1d_fn, causal_conv1d_update
from causal_conv1d.causal_conv1d_interface import causal_conv1d_fn
from selective_scan import selective_scan_fn as fn_v1, selective_scan_ref as ref_v1
import mamba_ssm, mamba_ssm.ops.selective_scan_interface as interface, selective_scan_cuda
import selective_scan_cuda_core, selective_scan_cuda_oflex
from causal_conv1d.cpp_functions import causal_conv1d_fwd_function, causal_conv1d_bwd_function
from causal_conv1d_cuda import causal_conv1d_fwd, causal_conv1d_bwd
from mamba_ssm.ops.triton.layernorm import RMSNorm, layer_norm_fn, rms_norm_fn
from mamba_ssm.ops.triton.layer_norm import RMSNorm as N, layer_norm_fn, rms_norm_fn
from mamba_ssm.utils.generation import GenerationMixin
from mamba_ssm.utils.hf import load_config_hf, load_state_dict_hf
assert mamba_ssm.ops.selective_scan_interface is interface and interface.selective_scan_fn is selective_scan_fn
"""
    exec(code, {})
    for name in compat.MODULES:
        module = importlib.import_module(name)
        assert "ganglion" in repr(module) and importlib.util.find_spec(name) is not None
    with pytest.raises(ImportError, match=r"mamba_ssm\.ops\.triton"):
        importlib.import_module("mamba_ssm.ops.triton.selective_state_update")
    with pytest.raises(ImportError, match=r"cannot import name 'Mamba3'"):
        exec("from mamba_ssm import Mamba3", {})
    with pytest.raises(
        AttributeError, match=r"the stand-in 'selective_scan_cuda' of ganglion has no 'bwdd'.*bwd, fwd"
    ):
        _ = importlib.import_module("selective_scan_cuda").bwdd


def test_a_real_package_is_left_alone_unless_told(monkeypatch):
    real = types.ModuleType("causal_conv1d")
    monkeypatch.setitem(sys.modules, "causal_conv1d", real)
    with pytest.raises(ImportError, match=r"causal_conv1d: the real package is installed.*replace=True"):
        compat.install()
    assert "mamba_ssm" not in sys.modules and sys.modules["causal_conv1d"] is real
    compat.install(replace=True)
    try:
        assert sys.modules["causal_conv1d"] is not real
        compat.install()  # once more: ours are not refused
    finally:
        compat.uninstall()
    assert sys.modules["causal_conv1d"] is real and "mamba_ssm" not in sys.modules


def test_an_installed_package_that_nobody_imported_is_real_too(tmp_path, monkeypatch):
    (tmp_path / "selective_scan_cuda_core.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match="selective_scan_cuda_core: the real package"):
        compat.install()


def test_the_fused_kernel_s_functions(installed):
    """`selective_scan_cuda` as the published wrapper calls it, against autograd through the loop."""
    import selective_scan_cuda  # pyright: ignore

    inputs = {name: t.requires_grad_() for name, t in scan_inputs(groups=1).items()}
    arguments = [inputs[name] for name in ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")]
    expected, state = selective_scan_reference(**inputs, delta_softplus=True, return_last_state=True)
    out, x, out_z = selective_scan_cuda.fwd(*arguments, True)
    assert_close(out_z, expected)
    assert_close(out * F.silu(inputs["z"]), expected)
    assert_close(x[:, :, -1, 1::2], state)
    dout, dz = normal(2, 6, 7, seed=9), torch.empty(2, 6, 7, dtype=torch.float64)
    *grads, dz_, again = selective_scan_cuda.bwd(*arguments, dout, x, out, dz, True, True)
    assert dz_ is dz
    assert_close(again, expected)
    wanted = torch.autograd.grad(expected, list(inputs.values()), dout)
    found = dict(zip(["u", "delta", "A", "B", "C", "D", "delta_bias"], grads, strict=True)) | {"z": dz}
    for name, gradient in zip(inputs, wanted, strict=True):
        assert_close(found[name], gradient, name=name)
    without = selective_scan_cuda.fwd(*arguments[:5], None, None, None, False)
    assert len(without) == 2
    grads = selective_scan_cuda.bwd(
        *arguments[:5], None, None, None, dout, without[1], None, None, False, False
    )
    assert grads[5] is grads[6] is None and len(grads) == 7


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_the_core_and_oflex_functions(installed, dtype):
    import selective_scan_cuda_core  # pyright: ignore
    import selective_scan_cuda_oflex  # pyright: ignore

    inputs = scan_inputs(dtype)
    del inputs["z"]
    arguments = list(inputs.values())
    exact = {name: t.double().requires_grad_() for name, t in inputs.items()}
    expected = selective_scan_reference(**exact, delta_softplus=True)
    core, x = selective_scan_cuda_core.fwd(*arguments, True, 1)
    flexible, _ = selective_scan_cuda_oflex.fwd(*arguments, True, 1, True)
    rounded, _ = selective_scan_cuda_oflex.fwd(*arguments, True, 1, False)
    assert core.dtype == rounded.dtype == dtype and flexible.dtype == torch.promote_types(
        dtype, torch.float32
    )
    assert_close(core, expected)
    assert_close(flexible, expected)
    assert torch.equal(rounded, flexible.to(dtype))
    dout = normal(2, 6, 7, seed=9).to(flexible.dtype)
    wanted = torch.autograd.grad(expected, list(exact.values()), dout.double())
    for module in (selective_scan_cuda_core, selective_scan_cuda_oflex):
        grads = module.bwd(*arguments, dout, x, True, 1)
        for name, found, gradient in zip(inputs, grads, wanted, strict=True):
            assert found.dtype == inputs[name].dtype
            assert_close(found, gradient, dtype, name=name)


@pytest.mark.parametrize("constant", [False, True])
def test_the_inner_functions(installed, constant):
    """Written out with PyTorch's own convolution and the loop."""
    from mamba_ssm.ops import selective_scan_interface as interface  # pyright: ignore

    xz, conv, bias = normal(2, 12, 7), normal(6, 1, 4, seed=1), normal(6, seed=2)
    A, A_b = (-normal(6, 3, seed=s).abs() for s in (3, 4))
    B, C = (normal(6, 3, seed=s) for s in (5, 6)) if constant else (None, None)
    x_proj, dt_proj = normal(2 if constant else 8, 6, seed=7), normal(6, 2, seed=8)
    out, out_bias, D, dt_bias = (
        normal(5, 6, seed=9),
        normal(5, seed=10),
        normal(6, seed=11),
        normal(6, seed=12),
    )
    x, z = xz.chunk(2, 1)
    x = F.silu(F.conv1d(F.pad(x, (3, 0)), conv, bias, groups=6))
    low, *rest = (x.mT @ x_proj.T).split([2] if constant else [2, 3, 3], dim=-1)
    B_, C_ = (B, C) if constant else (t.mT[:, None] for t in rest)
    delta = (low @ dt_proj.T).mT
    y = selective_scan_reference(x, delta, A, B_, C_, D, z, dt_bias, True)
    head = (xz, conv, bias, x_proj, dt_proj)
    tail = {"B": B, "C": C, "D": D, "delta_bias": dt_bias}
    assert_close(interface.mamba_inner_fn_no_out_proj(*head, A, **tail), y)
    assert_close(interface.mamba_inner_fn(*head, out, out_bias, A, **tail), y.mT @ out.T + out_bias)
    turned = [t if t.ndim == 2 else t.flip(-1) for t in (x, delta, B_, C_, z)]
    back = selective_scan_reference(
        turned[0], turned[1], A_b, turned[2], turned[3], D, turned[4], dt_bias, True
    )
    both = (y + back.flip(-1)).mT @ out.T + out_bias
    assert_close(interface.bimamba_inner_fn(*head, out, out_bias, A, A_b, **tail), both)
    with pytest.raises(
        ValueError, match=r"x_proj_weight has shape .* expected \(\d, 6\) for rank 2, d_state 3"
    ):
        interface.mamba_inner_fn(xz, conv, bias, x_proj[1:], dt_proj, out, out_bias, A, **tail)


def test_rms_norms_over_the_projections(installed):
    from mamba_ssm.ops.selective_scan_interface import mamba_inner_fn  # pyright: ignore

    xz, conv, A = normal(2, 12, 7), normal(6, 1, 4, seed=1), -normal(6, 3, seed=3).abs()
    x_proj, dt_proj, out = normal(8, 6, seed=7), normal(6, 2, seed=8), normal(5, 6, seed=9)
    weights = {name: normal(n, seed=20 + n) for name, n in (("b", 3), ("c", 3), ("dt", 2))}
    x, z = xz.chunk(2, 1)
    x = F.silu(F.conv1d(F.pad(x, (3, 0)), conv, None, groups=6))
    parts = (x.mT @ x_proj.T).split([2, 3, 3], dim=-1)
    dt, B, C = (
        p / (p.square().mean(-1, keepdim=True) + 1e-5).sqrt() * w
        for p, w in zip(parts, (weights["dt"], weights["b"], weights["c"]), strict=True)
    )
    y = selective_scan_reference(x, (dt @ dt_proj.T).mT, A, B.mT, C.mT, None, z, None, True)
    found = mamba_inner_fn(
        xz, conv, None, x_proj, dt_proj, out, None, A,
        **{f"{name}_rms_weight": w for name, w in weights.items()}, b_c_dt_rms_eps=1e-5,
    )  # fmt: skip
    assert_close(found, y.mT @ out.T)


def test_causal_conv1d_as_called(installed):
    from causal_conv1d import causal_conv1d_fn, causal_conv1d_update  # pyright: ignore

    x, weight, bias = normal(2, 6, 9), normal(6, 4, seed=1), normal(6, seed=2)
    expected = F.silu(F.conv1d(F.pad(x, (3, 0)), weight[:, None], bias, groups=6))
    assert_close(causal_conv1d_fn(x, weight, bias, activation="silu"), expected)
    assert_close(causal_conv1d_fn(x, weight, bias, "silu"), expected)  # before 1.2
    assert_close(causal_conv1d_fn(x, weight, bias, None, None, False, None, "swish"), expected)
    with pytest.raises(NotImplementedError, match="seq_idx"):
        causal_conv1d_fn(x, weight, bias, torch.zeros(2, 9))
    state = torch.zeros(2, 6, 4, dtype=torch.float64)
    steps = [causal_conv1d_update(x[..., t], state, weight, bias, "silu") for t in range(5)]
    steps = [
        *torch.stack(steps, 2).unbind(2),
        *causal_conv1d_update(x[..., 5:], state, weight, bias, "silu").unbind(2),
    ]
    assert_close(torch.stack(steps, 2), expected)
    assert torch.equal(state, x[..., -4:])
    with pytest.raises(ValueError, match=r"conv_state has shape .* S >= 3"):
        causal_conv1d_update(x[..., 0], state[..., :2], weight)


def test_mamba(installed):
    from mamba_ssm import Mamba  # pyright: ignore

    torch.manual_seed(0)
    block = Mamba(10, d_state=5, d_conv=3, expand=3, bias=True, layer_idx=0)
    # Names and shapes of the published block.
    assert {name: tuple(p.shape) for name, p in block.named_parameters()} == {
        "A_log": (30, 5), "D": (30,), "in_proj.weight": (60, 10), "in_proj.bias": (60,), "conv1d.weight": (30, 1, 3),
        "conv1d.bias": (30,), "x_proj.weight": (11, 30), "dt_proj.weight": (30, 1), "dt_proj.bias": (30,),
        "out_proj.weight": (10, 30), "out_proj.bias": (10,),
    }  # fmt: skip
    steps = F.softplus(block.dt_proj.bias)
    assert 1e-3 * 0.999 <= steps.min() and steps.max() <= 0.1 * 1.001 and steps.max() > 10 * steps.min()
    block, hidden = block.double(), normal(2, 7, 10)
    x, z = block.in_proj(hidden).mT.chunk(2, 1)
    x = F.silu(block.conv1d(x)[..., :7])
    low, B, C = block.x_proj(x.mT).split([1, 5, 5], dim=-1)
    A, bias = -block.A_log.float().exp().double(), block.dt_proj.bias.float().double()
    y = selective_scan_reference(
        x, (low @ block.dt_proj.weight.T).mT, A, B.mT, C.mT, block.D.float().double(), z, bias, True
    )
    assert_close(block(hidden), block.out_proj(y.mT))
    for call in (
        lambda: block(hidden, inference_params=object()),
        lambda: block.step(hidden[:, :1], None, None),
        lambda: block.allocate_inference_cache(2, 8),
    ):
        with pytest.raises(NotImplementedError, match="whole sequences"):
            call()
    with pytest.raises(ValueError, match="dt_init is 'ones'"):
        Mamba(10, dt_init="ones")


def run(*arguments: str, cwd) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "ganglion.compat", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=120)


def test_a_script_runs_untouched(tmp_path):
    (tmp_path / "beside.py").write_text("NAME = 'beside'\n")
    (tmp_path / "train.py").write_text(
        "import sys, beside\n"
        "from mamba_ssm.ops.selective_scan_interface import selective_scan_fn\n"
        "assert __name__ == '__main__'\n"
        "print(selective_scan_fn.__name__, beside.NAME, sys.argv[1:])\n"
        "sys.exit(3)\n"
    )
    (tmp_path / "elsewhere").mkdir()
    done = run("../train.py", "--lr", "1", cwd=tmp_path / "elsewhere")
    assert (done.stdout, done.returncode) == ("selective_scan beside ['--lr', '1']\n", 3), done.stderr
    done = run("-m", "train", "x", cwd=tmp_path)
    assert (done.stdout, done.returncode) == ("selective_scan beside ['x']\n", 3), done.stderr
    done = run("missing.py", cwd=tmp_path)
    assert (
        done.returncode == 2
        and "there is no script missing.py" in done.stderr
        and "Traceback" not in done.stderr
    )
    (tmp_path / "mamba_ssm.py").write_text("")  # the script's folder comes later: not the real package
    assert run(cwd=tmp_path).returncode == 2
