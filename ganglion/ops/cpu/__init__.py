"""The `cpu` backend: the fused scan as native code, for float32, bfloat16 and float16 with a float32 state.

The library `ganglion_scan`, built from `src/` by CMake, lies beside this file. It is compiled for several
instruction sets and uses the best one that the processor has; the environment variable GANGLION_CPU_ISA names another.
It runs on torch's threads, as many as `torch.get_num_threads()` says, and no result depends on their number.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ...errors import unknown
from ..routes import CHUNK

DEVICES = ("cpu",)
ISA_ENV = "GANGLION_CPU_ISA"

_ELEMENTS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_BLOCK = 32
#: Backward works on about this many pieces at once, however many threads there are.
_PIECES = 64


class _Scan(ctypes.Structure):
    """`Scan` of src/scan.h."""

    _fields_ = [
        *(
            (name, ctypes.c_int64)
            for name in ("batch", "height", "width", "channels", "routes", "rank", "state")
        ),
        *((name, ctypes.c_int64) for name in ("threads", "groups", "slices", "element")),
        *(
            (name, ctypes.c_void_p)
            for name in ("codes", "x", "proj", "dt_weight", "dt_bias", "A", "D", "carry")
        ),
        *((name, ctypes.c_void_p) for name in ("workspace", "y", "grad_y", "grad_x", "grad_proj")),
        *((name, ctypes.c_void_p) for name in ("grad_dt_weight", "grad_dt_bias", "grad_A", "grad_D")),
    ]


def unavailable() -> str | None:
    """Why this backend cannot run here, None if it can."""
    library = _library()
    return library if isinstance(library, str) else None


def rejects(x: Tensor, d_state: int, dt_rank: int) -> str | None:
    """Why this backend does not serve the call, None if it does."""
    if x.dtype not in _ELEMENTS:
        return f"it computes in float32 and x is {x.dtype}"
    return None


def instruction_sets() -> tuple[str, ...]:
    """The instruction sets that this machine can run, fastest first; empty if the backend is unavailable."""
    return tuple(_indices())


def forward(
    x: Tensor,
    proj: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor | None,
    routes: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """See `ganglion.ops.backends`."""
    batch, height, width, channels = x.shape
    y = torch.empty_like(x)
    chunks = (height * width + CHUNK - 1) // CHUNK
    carry = torch.empty(batch, len(routes), chunks, A.shape[2], channels, dtype=torch.float32)
    inputs = {"x": x, "proj": proj, "dt_weight": dt_weight, "dt_bias": dt_bias, "A": A, "D": D}
    _call("forward", routes, inputs | {"carry": carry, "y": y})
    return y, carry


def backward(
    grad_y: Tensor,
    x: Tensor,
    proj: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor | None,
    carry: Tensor,
    routes: Sequence[int],
) -> tuple[Tensor | None, ...]:
    """See `ganglion.ops.backends`."""
    inputs = {"x": x, "proj": proj, "dt_weight": dt_weight, "dt_bias": dt_bias, "A": A, "D": D}
    if not x.numel():
        return tuple(None if t is None else torch.zeros_like(t) for t in inputs.values())
    grads = {f"grad_{name}": None if t is None else torch.empty_like(t) for name, t in inputs.items()}
    _call("backward", routes, inputs | grads | {"carry": carry, "grad_y": grad_y})
    return tuple(grads.values())


def _call(direction: str, routes: Sequence[int], tensors: dict[str, Tensor | None]) -> None:
    """Runs the kernels on contiguous tensors, named as in `_Scan`."""
    library, isa = _library(), _isa()
    if isinstance(library, str):
        raise RuntimeError(library)
    x, proj, dt_weight, A = (tensors[name] for name in ("x", "proj", "dt_weight", "A"))
    assert x is not None and proj is not None and dt_weight is not None and A is not None
    if not x.numel():
        return
    batch, height, width, channels = x.shape
    # Threads add up gradients into memory of their own. How much there is depends on the shapes only, so that the
    # order of the sums does not depend on the number of threads, and is limited to about two tensors of the size of x.
    groups = min(batch, _PIECES)
    slices = min(-(-channels // _BLOCK), -(-_PIECES // groups), max(1, 2 * channels // proj.shape[3]))
    codes = (ctypes.c_int64 * len(routes))(*routes)
    scan = _Scan(
        batch=batch,
        height=height,
        width=width,
        channels=channels,
        routes=len(routes),
        rank=dt_weight.shape[2],
        state=A.shape[2],
        threads=torch.get_num_threads() if library.ganglion_scan_threaded() else 1,
        groups=groups,
        slices=slices,
        element=_ELEMENTS[x.dtype],
        codes=ctypes.addressof(codes),
        **{name: tensor.data_ptr() for name, tensor in tensors.items() if tensor is not None},
    )
    workspace = torch.empty(library.ganglion_scan_workspace(isa, ctypes.byref(scan)), dtype=torch.float32)
    scan.workspace = workspace.data_ptr()
    getattr(library, f"ganglion_scan_{direction}")(isa, ctypes.byref(scan))


def _isa() -> int:
    """Index of the instruction set to use."""
    indices, wanted = _indices(), os.environ.get(ISA_ENV)
    if wanted is None:
        return next(iter(indices.values()))
    if wanted not in indices:
        raise ValueError(f"{ISA_ENV}: " + unknown("instruction set", wanted, indices))
    return indices[wanted]


@functools.cache
def _indices() -> dict[str, int]:
    library = _library()
    found: dict[str, int] = {}
    index = 0
    while not isinstance(library, str) and (name := library.ganglion_scan_name(index)) is not None:
        if library.ganglion_scan_runs(index):
            found[name.decode()] = index
        index += 1
    return found


@functools.cache
def _library() -> ctypes.CDLL | str:
    """The library, or why there is none."""
    name = {"win32": "ganglion_scan.dll", "darwin": "libganglion_scan.dylib"}.get(
        sys.platform, "libganglion_scan.so"
    )
    path = Path(__file__).parent / name
    if not path.exists():
        return (
            f"{path} does not exist: the package was installed or checked out without building its native code. "
            "With a C++17 compiler, `pip install .` builds it (`pip install -e .` in a checkout)"
        )
    try:
        library = ctypes.CDLL(str(path))
        library.ganglion_scan_name.restype = ctypes.c_char_p
        library.ganglion_scan_size.restype = library.ganglion_scan_workspace.restype = ctypes.c_int64
        library.ganglion_scan_forward.restype = library.ganglion_scan_backward.restype = None
        if library.ganglion_scan_size() != ctypes.sizeof(_Scan):
            raise OSError("its arguments differ from this package's")
    except (OSError, AttributeError) as error:
        return f"{path} does not fit ({error}): build it again on this machine with `pip install .`"
    return library
