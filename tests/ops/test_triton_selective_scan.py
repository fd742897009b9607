"""The Triton backend of the 1-D scan as far as a machine without a GPU can prove it.

What the kernels compute is in `triton_selective_scan_interpreted.py`, which runs in a process of its own.
"""

from __future__ import annotations

import re

import pytest
import torch

from ganglion.ops import BackendError, triton
from ganglion.ops.dispatch import choose
from tests.ops.test_triton import benchmark_modules, needs_triton, run, version  # noqa: F401

pytestmark = needs_triton


@pytest.mark.skipif(
    version("triton") < (3, 8) and version("numpy") >= (2, 4),
    reason="the interpreter of Triton before 3.8 fails on range() with NumPy 2.4 and later",
)
def test_the_kernels_in_the_interpreter():
    file = "tests/ops/triton_selective_scan_interpreted.py"
    done = run("-m", "pytest", "-q", "-p", "no:cacheprovider", file, TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout and "skipped" not in done.stdout, done.stdout[-500:]


def test_what_it_does_not_serve_goes_to_the_next_backend_and_that_is_said(monkeypatch):
    """On a machine with a GPU; the meta device stands for one here."""
    monkeypatch.setattr(triton, "unavailable", lambda: None)
    monkeypatch.setattr(triton, "DEVICES", ("meta",))
    u = torch.empty(1, 4, 3, dtype=torch.float64, device="meta")
    with pytest.warns(RuntimeWarning, match=r"selective_scan runs.*because of 'triton'.*not torch.float64"):
        assert choose("selective_scan", u, d_state=1).__name__.endswith("torch.selective_scan")
    with pytest.raises(BackendError, match=r"not torch\.float64"):
        choose("selective_scan", u, "triton", d_state=1)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        assert choose("selective_scan", u.to(dtype), d_state=256) is triton.selective_scan


class TestSplit:
    """The choice of the parallel form."""

    @staticmethod
    def split(batch, group_channels, length, *, d_state=16, groups=4, backward=False):
        from ganglion.ops.triton import selective_scan_launch as launch

        return launch.split(
            batch=batch, groups=groups, group_channels=group_channels, length=length, d_state=d_state,
            processors=132, backward=backward,
        )  # fmt: skip

    def test_many_rows_are_walked_whole(self):
        for backward in (False, True):
            assert self.split(64, 192, 3136, backward=backward).segment_chunks == 49

    def test_few_rows_are_cut_into_segments(self):
        for length in (3136, 2**20):
            split = self.split(1, 192, length)
            segments = -(-length // 64) / split.segment_chunks
            assert 10 < segments <= 32

    def test_two_segments_would_gain_nothing(self):
        """A segment costs its recurrence twice."""
        assert self.split(9, 192, 3136).segment_chunks == 49

    @pytest.mark.parametrize("d_state", [1, 16, 64, 256])
    def test_gradients_of_B_and_C_take_no_more_memory_than_u_or_once(self, d_state):
        for channels in (1, 30, 192, 1000):
            split = self.split(64, channels, 100, d_state=d_state, backward=True)
            slices = -(-channels // (split.block_d * split.walks))
            assert slices == 1 or 2 * d_state * slices <= channels + 2 * d_state
        assert self.split(64, 1000, 100, d_state=d_state).walks == 1


class TestAheadOfTime:
    """Compiled for devices that are not here, by the launches of the operator."""

    @pytest.fixture(autouse=True)
    def _path(self, benchmark_modules, monkeypatch):  # noqa: F811
        monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "1")

    @pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
    @pytest.mark.parametrize("target", ["sm_80", "sm_90", "gfx942"])
    def test_no_kernel_of_the_fast_path_spills(self, target, dtype):
        from gpu_resources import taken
        from gpu_resources_selective_scan import compiled

        kernels = compiled(target, state=16, batch=1, dtype=dtype, gate=True)
        assert list(kernels) == [
            "segment_kernel", "join_kernel", "forward_kernel",
            "segment_kernel, adjoint", "join_kernel, adjoint", "backward_kernel",
        ]  # fmt: skip
        for name, kernel in kernels.items():
            registers, spills, shared = taken(kernel, target)
            # Numbers that no loop over states reads, see docs/gpu.md.
            bound = 16 if (target, dtype, name) == ("sm_80", torch.float32, "backward_kernel") else 0
            assert spills <= bound, (name, spills)
            assert registers > 0 and shared <= 4096, (name, registers, shared)

    def test_recurrences_stay_inside_a_thread(self):
        """A lane to a channel and all steps in one thread, and tiles come from memory along their steps."""
        from gpu_resources_selective_scan import compiled

        for name, kernel in compiled("sm_90", state=16, batch=8, gate=True).items():
            ir = kernel.asm["ttgir"]
            layouts = dict(re.findall(r"^(#\w+) = (#ttg\..*)$", ir, re.MULTILINE))
            scans = re.findall(
                r'"tt\.scan"\(%[^)]*, [^)]*\).*?\) : \(tensor<16x32xf32, (#\w+)>', ir, re.DOTALL
            )
            assert len(scans) == {"forward_kernel": 1, "backward_kernel": 4}[name], (name, scans)
            assert all("threadsPerWarp = [1, 32]" in layouts[layout] for layout in scans), (scans, layouts)
            tiles = re.findall(r"tt\.load %\w+ : tensor<16x32x!tt\.ptr<f16>, (#\w+)>", ir)
            assert len(tiles) == {"forward_kernel": 3, "backward_kernel": 10}[name], (name, tiles)
            assert all("sizePerThread = [8, 1]" in layouts[layout] for layout in tiles), (tiles, layouts)

    def test_every_launch_fits_its_kernel(self):
        """Through Triton's own front end, with and without what is optional; and shapes and dtypes of the results."""
        from gpu_resources_selective_scan import compiling, inputs

        from ganglion.ops.triton import selective_scan_launch as launch

        for constant in (False, True):
            args = inputs(batch=2, channels=40, length=130, state=3, constant=constant, dtype=torch.bfloat16)
            with compiling("gfx942"):
                y, last_state, carry = launch.forward(*args, True)
                grads = launch.backward(y, last_state, *args, carry, True)
            assert y.shape == args[0].shape and carry.shape == (2, 3, 3, 160)
            found = [None if g is None else (g.shape, g.dtype) for g in grads]
            assert found == [None if t is None else (t.shape, t.dtype) for t in args]
