"""Registers, spills and shared memory of the Triton kernels, compiled ahead of time: no GPU is needed.

    python benchmarks/gpu_resources.py [--targets sm_80 sm_90 gfx942] [--networks vmamba_tiny sparx_tiny]
        [--dtype fp16] [--json]

All of one program, which is one warp (a wavefront on AMD): registers and shared memory, in bytes, and spills, the bytes
of stack that a thread needs for values that found no register.
"""

from __future__ import annotations

import os

os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")

import argparse
import json
import re
import subprocess
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ganglion.ops.routes import CHUNK, pattern
from ganglion.ops.triton import launch
from ganglion.ops.triton.adjoint import backward_kernel
from ganglion.ops.triton.kernels import forward_kernel, segment_ends_kernel

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
#: (channels, dt_rank, side) of the four stages at 224 pixels.
STAGES = {
    "vmamba_tiny": ((96, 6, 56), (192, 12, 28), (384, 24, 14), (768, 48, 7)),
    "sparx_tiny": ((192, 6, 56), (384, 12, 28), (640, 20, 14), (1024, 32, 7)),
}
KERNELS = {
    "forward": (forward_kernel, {}),
    "backward": (backward_kernel, {}),
    "segment ends": (segment_ends_kernel, {"ADJOINT": False}),
    "segment ends, adjoint": (segment_ends_kernel, {"ADJOINT": True}),
}
_DTYPES = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What one compiled kernel takes."""

    kernel: str
    target: str
    channels: int
    dt_rank: int
    dtype: str
    registers: int
    spills: int
    shared: int


def compile_kernel(
    name: str,
    target: str,
    *,
    channels: int,
    dt_rank: int,
    side: int,
    d_state: int = 1,
    dtype: torch.dtype = torch.float16,
    batch: int = 128,
    processors: int = 132,
):
    """The compiled kernel that a call of this shape launches."""
    kernel, extra = KERNELS[name]
    backward = name == "backward" or extra.get("ADJOINT", False)
    codes = [route.code for route in pattern("cross2d")]
    length = side * side
    how = launch.tiling(
        batch=batch,
        length=length,
        channels=channels,
        n_routes=len(codes),
        dt_rank=dt_rank,
        dtype=dtype,
        processors=processors,
        backward=backward,
    )
    constants = launch.constants(
        dtype=dtype,
        length=length,
        channels=channels,
        n_routes=len(codes),
        d_state=d_state,
        dt_rank=dt_rank,
        routes=codes,
        steps=how.steps,
        block_d=how.block_d,
        backend=TARGETS[target].backend,
        backward=backward,
    )
    constants |= {"HAS_SKIP": True, "WALKS": how.walks, "CHUNK": CHUNK, "LOG_A": not backward, **extra}
    constants = {k: v for k, v in constants.items() if k in kernel.arg_names}
    in_x = {"x", "proj", "y", "grad_y", "grad_x", "grad_proj"}
    integers = {"batch", "height", "width", "channels", "segments", "segment_steps", "chunks"}
    signature, attrs = {}, {}
    for i, arg in enumerate(kernel.arg_names):
        if arg in constants:
            signature[arg] = "constexpr"
        elif arg in integers:
            signature[arg] = "i32"
        else:
            signature[arg] = "*" + (_DTYPES[dtype] if arg in in_x else "fp32")
            attrs[(i,)] = [["tt.divisibility", 16]]
        if arg == "channels" and channels % 16 == 0:
            attrs[(i,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constants, attrs)
    return triton.compile(source, target=TARGETS[target], options=dict(launch.OPTIONS))


def resources(name: str, target: str, *, dtype: torch.dtype = torch.float16, **shape: int) -> Resources:
    """Compile a kernel and read what it takes."""
    registers, spills, shared = taken(compile_kernel(name, target, dtype=dtype, **shape), target)
    return Resources(
        kernel=name,
        target=target,
        channels=shape["channels"],
        dt_rank=shape["dt_rank"],
        dtype=_DTYPES[dtype],
        registers=registers,
        spills=spills,
        shared=shared,
    )


def taken(compiled, target: str) -> tuple[int, int, int]:
    """Registers, spills and shared memory of a compiled kernel."""
    if target.startswith("sm_"):
        registers, spills = _cubin_resources(compiled.asm["cubin"])
    else:
        text = compiled.asm["amdgcn"]
        registers = int(re.search(r"\.vgpr_count:\s*(\d+)", text).group(1))
        spills = 4 * int(re.search(r"\.vgpr_spill_count:\s*(\d+)", text).group(1))
    return registers, spills, compiled.metadata.shared


def _cubin_resources(cubin: bytes) -> tuple[int, int]:
    """Registers and bytes of stack, of which these kernels have no other use than to spill to it."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        done = subprocess.run(
            [str(tool), "-res-usage", file.name], capture_output=True, text=True, check=True
        )
    found = re.search(r"REG:(\d+) STACK:(\d+)", done.stdout + done.stderr)
    return int(found.group(1)), int(found.group(2))


def table(rows: list[Resources]) -> str:
    """A Markdown table."""
    names = ("kernel", "target", "channels", "dt_rank", "dtype", "registers", "spills", "shared")
    lines = ["| " + " | ".join(names) + " |", "|" + " --- |" * len(names)]
    for r in rows:
        lines.append("| " + " | ".join(str(v) for v in asdict(r).values()) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--targets", nargs="+", default=list(TARGETS), choices=TARGETS)
    parser.add_argument("--networks", nargs="+", default=list(STAGES), choices=STAGES)
    parser.add_argument("--dtype", default="fp16", choices=_DTYPES.values())
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    args = parser.parse_args()
    dtype = next(dtype for dtype, name in _DTYPES.items() if name == args.dtype)
    rows = [
        resources(name, target, channels=channels, dt_rank=rank, side=side, dtype=dtype)
        for target in args.targets
        for network in args.networks
        for channels, rank, side in STAGES[network]
        for name in KERNELS
    ]
    print(json.dumps([asdict(r) for r in rows]) if args.json else table(rows))


if __name__ == "__main__":
    main()
