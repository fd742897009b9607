"""What projects that carry their own `mamba_ssm` along need: its blocks, its norms, the extensions under its Python."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ganglion.compat import causal_conv1d, layer_norms, refused
from ganglion.compat import mamba_ssm as compat
from ganglion.compat.mamba_simple import Mamba
from ganglion.ops import selective_scan_reference
from tests.tolerances import assert_close

pytestmark = pytest.mark.filterwarnings(
    "ignore:ganglion. selective_scan runs on the slower backend"
)  # float64


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def branch(block: Mamba, xz: Tensor, suffix: str = "", A_suffix: str | None = None) -> Tensor:
    """A block's scan by the parameters of one suffix, on the published loop."""
    conv1d, x_proj, dt_proj = (getattr(block, name + suffix) for name in ("conv1d", "x_proj", "dt_proj"))
    x, z = xz.chunk(2, 1)
    x = F.silu(conv1d(x)[..., : x.shape[2]])
    rank, state = block.dt_rank, block.d_state
    low, B, C = x_proj(x.mT).split([rank, state, state], dim=-1)
    delta = (low @ dt_proj.weight.T).mT
    A = -getattr(block, f"A{suffix if A_suffix is None else A_suffix}_log").exp()
    arguments = [x, delta, A, B.mT, C.mT, getattr(block, f"D{suffix}"), z, dt_proj.bias]
    if A_suffix is not None:  # the whole scan the other way
        for i in (0, 1, 3, 4, 6):
            arguments[i] = arguments[i].flip(-1)
        return selective_scan_reference(*arguments, True).flip(-1)
    return selective_scan_reference(*arguments, True)


@pytest.mark.parametrize("bimamba_type", ["none", "v1", "v2", "v2 mean", "v3"])
def test_the_blocks_of_the_forks(bimamba_type):
    torch.manual_seed(0)
    bimamba_type, *mean = bimamba_type.split()
    block = Mamba(
        6, d_state=3, bimamba_type=bimamba_type, nslices=4, if_divide_out=bool(mean), init_layer_scale=0.5
    )
    own = {"_b": {"v1": ["A"], "v2": "all", "v3": "all"}, "_s": {"v3": "all"}}
    every = ["A", "D", "conv1d.weight", "conv1d.bias", "x_proj.weight", "dt_proj.weight", "dt_proj.bias"]
    expected = {"gamma", "in_proj.weight", "out_proj.weight"}
    for suffix, kinds in {"": dict.fromkeys(["none", "v1", "v2", "v3"], "all"), **own}.items():
        for name in every if kinds.get(bimamba_type) == "all" else kinds.get(bimamba_type, []):
            first, _, last = name.partition(".")
            expected.add(f"A{suffix}_log" if name == "A" else first + suffix + (f".{last}" if last else ""))
    assert set(block.state_dict()) == expected
    block, hidden = block.double(), normal(2, 12, 6)
    for parameter in block.parameters():  # those that begin alike would hide a wrong name
        parameter.data += 0.1 * normal(*parameter.shape, seed=parameter.numel())
    xz = block.in_proj(hidden).mT
    y = branch(block, xz)
    if bimamba_type == "v1":
        y = y + branch(block, xz, "", "_b")
    if bimamba_type in ("v2", "v3"):
        y = y + branch(block, xz.flip(-1), "_b").flip(-1)
    if bimamba_type == "v3":
        order = torch.arange(12).view(4, 3).T.flatten()  # position p of every slice, then p + 1
        y = y + branch(block, xz[..., order], "_s")[..., order.argsort()]
    if mean:
        y = y / 2
    # The stand-in rounds A, D and the bias to float32, as the package does.
    torch.testing.assert_close(block(hidden), block.out_proj(y.mT) * block.gamma, rtol=1e-5, atol=1e-6)


def test_blocks_that_cannot_be():
    with pytest.raises(ValueError, match=r"unknown bimamba_type 'v4'.*Valid: none, v1, v2, v3"):
        Mamba(6, bimamba_type="v4")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"13 positions: .* multiple of nslices, 4"):
        Mamba(6, bimamba_type="v3", nslices=4)(torch.zeros(1, 13, 6))
    assert Mamba(6, bimamba_type="v2", if_devide_out=True).if_divide_out


@pytest.mark.parametrize("is_rms_norm", [False, True])
def test_norms_with_a_residual(is_rms_norm):
    x, residual, weight, bias = normal(2, 5, 8), normal(2, 5, 8, seed=1), normal(8, seed=2), normal(8, seed=3)
    total = x + residual
    centred = total if is_rms_norm else total - total.mean(-1, keepdim=True)
    expected = centred / (centred.square().mean(-1, keepdim=True) + 1e-3).sqrt() * weight + bias
    function = layer_norms.rms_norm_fn if is_rms_norm else layer_norms.layer_norm_fn
    y, kept = function(x, weight, bias, residual=residual, prenorm=True, eps=1e-3)
    assert_close(y, expected)
    assert_close(kept, total)
    half = function(x.bfloat16(), weight, bias, residual=residual.float(), prenorm=True, eps=1e-3)
    assert [t.dtype for t in half] == [torch.bfloat16, torch.float32]
    first = function(x.bfloat16(), weight, bias, prenorm=True, residual_in_fp32=True)
    assert [t.dtype for t in first] == [torch.bfloat16, torch.float32]
    assert function(x.bfloat16(), weight, bias, prenorm=True)[1].dtype == torch.bfloat16


def test_rms_norm_as_a_module():
    norm = layer_norms.RMSNorm(8, eps=1e-3)
    assert list(norm.state_dict()) == ["weight"] and norm.bias is None
    x = normal(3, 8).float()
    torch.testing.assert_close(norm(x), F.rms_norm(x, (8,), norm.weight, 1e-3))


def test_what_is_refused_says_so():
    with pytest.raises(NotImplementedError, match="generation"):
        refused.GenerationMixin().generate(torch.zeros(1, 1), max_length=3)
    for load in (refused.load_config_hf, refused.load_state_dict_hf):
        with pytest.raises(NotImplementedError, match=r"some/model is not downloaded"):
            load("some/model")


@pytest.mark.parametrize("release", ["1.0", "1.1", "1.2"])
@pytest.mark.parametrize("silu", [False, True])
def test_the_convolution_s_extension(release, silu):
    x, weight, bias = (t.requires_grad_() for t in (normal(2, 3, 9), normal(3, 4, seed=1), normal(3, seed=2)))
    before, dout, dfinal = (
        normal(2, 3, 3, seed=3).requires_grad_(),
        normal(2, 3, 9, seed=4),
        normal(2, 3, 3, seed=5),
    )
    whole = torch.cat([before if release == "1.2" else torch.zeros_like(before), x], dim=2)
    expected = F.conv1d(whole, weight[:, None], bias, groups=3)
    expected = F.silu(expected) if silu else expected
    outputs, grads = (
        ([expected, whole[..., -3:]], [dout, dfinal]) if release == "1.2" else ([expected], [dout])
    )
    leaves = [x, weight, bias, before][: 4 if release == "1.2" else 3]
    wanted = torch.autograd.grad(outputs, leaves, grads)
    dx, final = torch.zeros(2, 6, 9, dtype=torch.float64), torch.zeros_like(before)
    others = {
        "1.0": ((silu,), (dx[:, 3:], silu)),
        "1.1": ((None, silu), (None, dx[:, 3:], silu)),
        "1.2": ((None, before, final, silu), (None, before, dfinal, dx[:, 3:], True, silu)),
    }[release]
    assert_close(causal_conv1d.extension_fwd(x, weight, bias, *others[0]), expected)
    for made, grad in zip(
        causal_conv1d.extension_bwd(x, weight, bias, dout, *others[1]), wanted, strict=True
    ):
        assert_close(made, grad)
    assert_close(dx[:, 3:], wanted[0])  # written where the caller wants it
    if release == "1.2":
        assert_close(final, x[..., -3:])


def test_the_convolution_s_extension_refuses():
    x, weight = normal(2, 3, 9), normal(3, 4)
    assert (
        causal_conv1d.extension_bwd(x, weight, None, x, None, False)[2] is None
    )  # no bias, no gradient of it
    with pytest.raises(TypeError, match=r"causal_conv1d_fwd has 3 arguments .* one of \(1, 2, 4\)"):
        causal_conv1d.extension_fwd(x, weight, None, None, None, True)
    with pytest.raises(TypeError, match=r"a bool, `silu`"):
        causal_conv1d.extension_bwd(x, weight, None, x, True, None)
    with pytest.raises(NotImplementedError, match="seq_idx"):
        causal_conv1d.extension_fwd(x, weight, None, torch.zeros(2, 9), True)


def test_a_project_keeps_its_own_mamba_ssm(tmp_path, monkeypatch):
    package = tmp_path / "mamba_ssm"
    package.mkdir()
    (package / "__init__.py").write_text(
        "import selective_scan_cuda, causal_conv1d_cuda\nNAME = 'their own'\n"
    )
    (tmp_path / "train.py").write_text(
        "import mamba_ssm, causal_conv1d\n"
        "print(mamba_ssm.NAME, mamba_ssm.selective_scan_cuda, mamba_ssm.causal_conv1d_cuda)\n"
    )
    command = [sys.executable, "-m", "ganglion.compat", "--keep", "mamba_ssm", "train.py"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert done.returncode == 0 and done.stdout.startswith("their own <module"), done.stderr
    assert done.stdout.count("a stand-in") == 2

    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match=r"mamba_ssm: the real package .* `--keep mamba_ssm`"):
        compat.install()
    try:
        compat.install(keep=["mamba_ssm"])
        import mamba_ssm  # pyright: ignore

        assert mamba_ssm.NAME == "their own"
        compat.install(replace=True, keep=["mamba_ssm"])
        assert sys.modules["mamba_ssm"] is mamba_ssm
    finally:
        compat.uninstall()
        sys.modules.pop("mamba_ssm", None)
    with pytest.raises(ValueError, match=r"unknown keep 'mamba'.*Did you mean 'mamba_ssm'"):
        compat.install(keep=["mamba"])


@pytest.mark.parametrize("arguments", [["train.py"], ["-m", "train"]])
def test_spawned_processes_have_the_stand_ins(tmp_path, arguments):
    (tmp_path / "train.py").write_text(
        "import multiprocessing\n"
        "from mamba_ssm import Mamba\n"
        "def work(x):\n"
        "    assert x == 1 and 'a stand-in' in repr(__import__('selective_scan_cuda'))\n"
        "if __name__ == '__main__':\n"
        "    process = multiprocessing.get_context('spawn').Process(target=work, args=(1,))\n"
        "    process.start()\n"
        "    process.join()\n"
        "    print('exit', process.exitcode)\n"
    )
    command = [sys.executable, "-m", "ganglion.compat", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert (done.returncode, done.stdout) == (0, "exit 0\n"), done.stderr
