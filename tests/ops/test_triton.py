"""The Triton backend as far as a machine without a GPU can prove it.

What the kernels compute is in `triton_interpreted.py`, which runs in a process of its own.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import pytest
import torch

from ganglion.ops import BackendError, pattern, scan2d, triton
from ganglion.ops.dispatch import choose

ROOT = Path(__file__).parents[2]
needs_triton = pytest.mark.skipif(
    triton.unavailable() == "the package triton is not installed", reason="no triton"
)


def version(package: str) -> tuple[int, int]:
    """Major and minor version of an installed package, (0, 0) of a missing one."""
    try:
        major, minor = metadata.version(package).split(".")[:2]
    except metadata.PackageNotFoundError:
        return 0, 0
    return int(major), int(minor)


@pytest.fixture
def benchmark_modules(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")


def run(*command: str, timeout: int = 280, **env: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=timeout,
    )


@needs_triton
@pytest.mark.skipif(
    version("triton") < (3, 8) and version("numpy") >= (2, 4),
    reason="the interpreter of Triton before 3.8 fails on range() with NumPy 2.4 and later",
)
def test_the_kernels_in_the_interpreter():
    done = run(
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "tests/ops/triton_interpreted.py",
        TRITON_INTERPRET="1",
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout and "skipped" not in done.stdout, done.stdout[-500:]


def test_the_package_needs_no_triton():
    """Without triton `import ganglion` works, the backend says what is missing, and another one serves."""
    code = """
import sys
sys.modules["triton"] = None
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *args: None if name == "triton" else find(name, *args)
import torch, ganglion
from ganglion.ops import PATTERNS, scan2d
status = {row.name: row for row in ganglion.backends()}["triton"]
assert not status.available and status.reason == "the package triton is not installed", status
ones = torch.ones
y = scan2d(ones(1, 2, 2, 3), ones(1, 2, 2, 3), ones(1, 3, 1), ones(1, 3), -ones(1, 3, 1), routes=PATTERNS["ssm"])
assert y.shape == (1, 2, 2, 3)
"""
    done = run("-c", code, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.skipif(torch.cuda.is_available() or torch.xpu.is_available(), reason="a GPU is here")
@needs_triton
def test_says_that_there_is_no_gpu():
    assert triton.unavailable() == "no GPU: torch finds neither a CUDA or ROCm nor an XPU device"
    with pytest.raises(BackendError, match="triton"):
        choose("scan2d", torch.zeros(1, 2, 2, 3), "triton", d_state=1, dt_rank=1)


@pytest.mark.parametrize(
    ("dtype", "size", "state", "rank", "said"),
    [
        (torch.float64, (4, 4), 1, 4, "not torch.float64"),
        (torch.float32, (4, 4), 17, 4, "d_state up to 16, not 17"),
        (torch.float32, (4, 4), 1, 129, "dt_rank up to 128, not 129"),
        (torch.float32, (4, 40000), 1, 4, "not 4 x 40000"),
    ],
)
def test_says_what_it_does_not_serve(dtype, size, state, rank, said):
    assert said in triton.scan2d.rejects(
        torch.empty(1, *size, 3, dtype=dtype, device="meta"), d_state=state, dt_rank=rank
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_serves_the_rest(dtype):
    assert (
        triton.scan2d.rejects(
            torch.empty(1, 32768, 2, 3, dtype=dtype, device="meta"), d_state=16, dt_rank=128
        )
        is None
    )


def test_a_refused_call_goes_to_the_next_backend_and_says_so(monkeypatch):
    """On a machine with a GPU; the meta device stands for one here."""
    monkeypatch.setattr(triton, "unavailable", lambda: None)
    monkeypatch.setattr(triton, "DEVICES", ("meta",))
    x = torch.empty(1, 4, 4, 3, dtype=torch.float64, device="meta")
    with pytest.warns(RuntimeWarning, match="because of 'triton'.*float64"):
        chosen = choose("scan2d", x, d_state=1, dt_rank=4)
    assert chosen.__name__.endswith("torch.scan2d")
    with pytest.raises(BackendError, match="float64"):
        choose("scan2d", x, "triton", d_state=1, dt_rank=4)


@needs_triton
class TestPlan:
    """The choice of the parallel form."""

    @staticmethod
    def tiling(batch, side, channels, *, rank=6, dtype=torch.float16, backward=False):
        from ganglion.ops.triton import launch

        return launch.tiling(
            batch=batch, length=side * side, channels=channels, n_routes=4, dt_rank=rank, dtype=dtype,
            processors=132, backward=backward,
        )  # fmt: skip

    @pytest.mark.parametrize(
        ("side", "channels", "rank", "fastest"),
        [(56, 96, 6, (1, 32, 32)), (28, 192, 12, (1, 64, 16)), (14, 384, 24, (1, 64, 16)), (7, 768, 48, (4, 32, 32))],
    )  # fmt: skip
    def test_large_batches_get_what_was_measured_to_be_fastest(self, side, channels, rank, fastest):
        """Of the stages of VMamba-T at 128 images on an H200: (routes a program, channels, steps)."""
        found = self.tiling(128, side, channels, rank=rank)
        assert (found.walks, found.block_d, found.steps) == fastest
        for dtype, backward in ((torch.float32, False), (torch.float16, True), (torch.float32, True)):
            found = self.tiling(128, side, channels, rank=rank, dtype=dtype, backward=backward)
            assert (found.walks, found.block_d, found.steps) == (1, 32, 16)
            assert found.segment_chunks * 64 >= side * side

    def test_one_image_is_cut_into_segments(self):
        from ganglion.ops.triton.launch import MAX_SEGMENTS

        for side in (56, 256):
            tiling = self.tiling(1, side, 96)
            segments = -(-side * side // 64) / tiling.segment_chunks
            assert tiling.walks == 1 and 16 < segments <= MAX_SEGMENTS

    def test_routes_are_cut_only_where_programs_are_far_too_few(self):
        """Two segments cost what they gain, and a launch. 12 programs an image here, of 1,452 that fill the device."""
        segments = {
            batch: -(-49 // self.tiling(batch, 56, 96).segment_chunks) for batch in (8, 24, 30, 41, 121)
        }
        assert segments == {8: 13, 24: 6, 30: 5, 41: 1, 121: 1}

    def test_every_shape_gets_a_legal_tiling(self):
        for batch in (1, 2, 16, 128, 1000):
            for side in (1, 7, 14, 63, 64, 256):
                for backward in (False, True):
                    tiling = self.tiling(batch, side, 100, backward=backward)
                    chunks = -(-side * side // 64)
                    assert tiling.segment_chunks >= 1 and 4 % tiling.walks == 0 and 64 % tiling.steps == 0
                    assert tiling.walks == 1 or tiling.segment_chunks >= chunks

    def test_a_plan_that_would_add_up_in_the_wrong_place_is_an_error(self):
        from ganglion.ops.triton import launch

        x = torch.empty(1, 16, 16, 16, device="meta")
        A = torch.empty(2, 16, 1, device="meta")
        wrong = launch.Tiling(block_d=16, steps=16, walks=2, segment_chunks=1)
        with pytest.raises(ValueError, match="walks=2"):
            launch.forward(x, x, A, A, A, None, [0, 6], wrong)
        wrong = launch.Tiling(block_d=16, steps=16, walks=2, segment_chunks=4)
        with pytest.raises(ValueError, match="walks has to be 1"):
            launch.backward(x, x, x, A, A, A, None, A, [0, 6], wrong)


@needs_triton
@pytest.mark.parametrize("network", ["vmamba_tiny_s1l8", "vmamba_tiny_s2l5", "sparx_mamba_tiny"])
def test_bytes_of_the_forward_pass(network, benchmark_modules):
    """At most a quarter of the published sequence's where a program walks all routes, with every byte that a launch
    touches counted once. One route a program is faster where that fills the device; it pays with maps of the routes.

    `triton_interpreted.py` holds the count of all loads and stores to what the kernels do.
    """
    from gpu_bytes import STAGES, Shape, default_tiling, ratios

    for channels, rank, side in STAGES[network]:
        shape = Shape(batch=128, height=side, width=side, channels=channels, dt_rank=rank)
        how = default_tiling(shape, backward=False)
        assert ratios(shape, replace(how, walks=4))[0] <= 0.25, channels
        least, most = ratios(shape, how)
        assert least <= 0.31, (channels, least)
        assert least < most < 1, (channels, most)


@needs_triton
def test_nothing_of_the_size_of_all_routes_is_kept_for_backward():
    """Counted by autograd's own hook: what is kept beyond the operator's inputs, against K * D * L elements."""
    batch, side, channels, rank = 2, 56, 32, 2
    generator = torch.Generator().manual_seed(0)
    shapes = (
        (batch, side, side, channels),
        (batch, side, side, 4 * (rank + 2)),
        (4, channels, rank),
        (4, channels),
    )
    inputs = [
        torch.randn(s, generator=generator, requires_grad=True)
        for s in (*shapes, (4, channels, 1), (4, channels))
    ]
    kept: dict[int, int] = {}

    def pack(tensor):
        kept[tensor.data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        scan2d(*inputs, routes=pattern("cross2d"), backend="torch")
    ours = {t.data_ptr() for t in inputs}
    extra = sum(size for pointer, size in kept.items() if pointer not in ours)
    assert 0 < extra <= batch * side * side * channels * 4 / 32


@needs_triton
class TestAheadOfTime:
    """Compiled for devices that are not here."""

    @pytest.fixture(autouse=True)
    def _path(self, benchmark_modules, monkeypatch):
        monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "1")

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
    @pytest.mark.parametrize("target", ["sm_80", "sm_90", "gfx942"])
    def test_no_kernel_of_the_fast_path_spills(self, target, dtype):
        from gpu_resources import KERNELS, STAGES, resources

        if dtype == torch.float32 and version("triton") < (3, 8):
            pytest.skip("Triton before 3.8 spills in float32: see docs/gpu.md")
        stages = dict.fromkeys(stage for network in STAGES.values() for stage in network)
        if dtype == torch.float32:  # the others do, see docs/gpu.md
            stages = [stage for stage in stages if stage[1] <= 16]
        for name, (channels, rank, side) in itertools.product(KERNELS, stages):
            for batch in (1, 128) if name == "forward" else (128,):  # one route a program, and several
                found = resources(
                    name, target, channels=channels, dt_rank=rank, side=side, dtype=dtype, batch=batch
                )
                # Triton before 3.8 keeps one number of a thread.
                assert found.spills <= (0 if version("triton") >= (3, 8) else 8), found
                assert found.registers > 0 and found.shared < 48 * 1024, found

    @pytest.mark.parametrize("name", ["forward", "backward", "segment ends", "segment ends, adjoint"])
    def test_recurrences_stay_inside_a_thread(self, name):
        """A lane to a channel and all steps in one thread, and no recurrence is run once more in another layout."""
        from gpu_resources import compile_kernel

        ir = compile_kernel(name, "sm_90", channels=96, dt_rank=6, side=56).asm["ttgir"]
        layouts = dict(re.findall(r"^(#\w+) = (#ttg\..*)$", ir, re.MULTILINE))
        scans = re.findall(r'"tt\.scan"\(.*?\) : \(tensor<(?:16|32)x32xf32, (#\w+)>', ir, re.DOTALL)
        # by_channel and the recurrence. In the backward pass so in both of its loops, and the states moved by a step,
        # the sum for the skip and the adjoint recurrence.
        assert len(scans) == {"backward": 7}.get(name, 2), scans
        assert all("threadsPerWarp = [1, 32]" in layouts[layout] for layout in scans), (scans, layouts)

    @pytest.mark.parametrize("name", ["forward", "backward", "segment ends"])
    def test_offsets_of_images_have_64_bits(self, name):
        """What grows with the batch passes 2^31 elements. Offsets of the parameters do not."""
        from gpu_resources import compile_kernel

        parameters = {"dt_weight", "dt_bias", "A", "skip"}
        ir = compile_kernel(name, "sm_90", channels=96, dt_rank=6, side=56).asm["ttir"]
        seen = set()
        pointers = re.findall(r"%(\w+): !tt\.ptr<", ir)
        for argument in pointers:
            splats = re.findall(rf"%(\w+) = tt\.splat %{argument} ", ir)
            for base in (argument, *splats):
                for kind in re.findall(
                    rf"tt\.addptr %{base}, %[\w#]+ : [^,]+, (?:tensor<[\dx]*x)?(i\d+)", ir
                ):
                    assert argument in parameters or kind == "i64", (argument, kind)
                    seen.add(argument)
        assert {"x", "proj", "ends"} <= seen

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_other_dtypes_and_states_compile(self, dtype):
        from gpu_resources import resources

        for name in ("forward", "backward"):
            assert (
                resources(name, "sm_90", channels=96, dt_rank=6, side=14, d_state=4, dtype=dtype).registers
                > 0
            )


@needs_triton
@pytest.mark.parametrize("batch", [1, 128])
def test_the_launches_fit_the_kernels(batch, monkeypatch):
    """Every launch goes through Triton's own front end, which binds, specialises and compiles, but does not run it."""
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver, jit

    from ganglion.ops.triton import launch

    class Absent:
        """A device that is not here."""

        get_current_target = staticmethod(lambda: GPUTarget("cuda", 90, 32))
        get_current_device = staticmethod(lambda: 0)
        get_current_stream = staticmethod(lambda device: 0)

    launched = []

    def warm_up(self, *args, grid, warmup, **kwargs):
        launched.append((self.__name__, grid))
        return run(self, *args, grid=grid, warmup=True, **kwargs)

    run = jit.JITFunction.run
    monkeypatch.setattr(jit.JITFunction, "run", warm_up)
    monkeypatch.setattr(launch, "processors", lambda device: 132)
    monkeypatch.setattr(launch, "on_device", lambda x: contextlib.nullcontext())
    monkeypatch.setattr(type(driver), "active", Absent())
    half = {"dtype": torch.float16, "device": "meta"}
    x, proj = torch.empty(batch, 28, 28, 192, **half), torch.empty(batch, 28, 28, 4 * 14, **half)
    shapes = ((4, 192, 12), (4, 192), (4, 192, 1), (4, 192))
    arguments = [x, proj, *(torch.empty(shape, device="meta") for shape in shapes)]
    codes = [route.code for route in pattern("cross2d")]
    y, carry = launch.forward(*arguments, codes)
    grads = launch.backward(y, *arguments, carry, codes)
    assert y.shape == x.shape and carry.shape == (batch, 4 * 13 * 192)
    assert [(g.shape, g.dtype) for g in grads] == [(t.shape, t.dtype) for t in arguments]
    passes = ["forward_kernel", "backward_kernel"]
    chunked = [name for kernel in passes for name in ("segment_ends_kernel", kernel)]
    assert [name for name, grid in launched] == (chunked if batch == 1 else passes)


@needs_triton
def test_the_benchmark_is_complete_and_measures_nothing_wrong(tmp_path):
    """A rehearsal on the CPU; and with bounds that nothing meets it prints no speed."""
    done = run("benchmarks/gpu.py", "--rehearse", "--part", "op", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads((tmp_path / "results.json").read_text())
    assert {row["pass"] for row in found["The operator"]} == {"forward", "backward"}
    assert all(
        row["passed"] and 0 < row["error"] for row in found["Accuracy: relative RMS error against float64"]
    )
    code = """
import sys
sys.path.insert(0, "benchmarks")
import gpu, gpu_op
gpu_op.BOUNDS.update(dict.fromkeys(gpu_op.BOUNDS, 0.0))
gpu_op.check_behaviour = lambda *_: []
sys.exit(gpu.main())
"""
    done = run("-c", code, "--rehearse", "--part", "op", "--out", str(tmp_path))
    assert done.returncode == 1 and "no speed is measured" in done.stderr
    assert "The operator" not in done.stdout
