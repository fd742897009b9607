"""The `cpu` backend: the fused scan as native code, for float32, bfloat16 and float16 with a float32 state.

Beside it: the gradient of a depthwise convolution's weight, for `ganglion.ops.depthwise`.

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

#: Kernel sizes of depthwise convolutions that were compiled in.
KERNEL_SIZES = (1, 3, 5, 7, 9)


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


class _Depthwise(ctypes.Structure):
    """`Depthwise` of src/depthwise.h."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("batch", "height", "width", "channels", "kernel", "threads")),
        *((name, ctypes.c_void_p) for name in ("x", "grad_y", "workspace", "grad_weight")),
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


def depthwise_grad_weight(x: Tensor, grad_y: Tensor, kernel_size: int) -> Tensor:
    """Gradient (C, 1, K, K) of the weight of a depthwise convolution with stride 1 and padding K // 2.

    x and grad_y: (B, H, W, C), contiguous, float32.

    Raises RuntimeError if the backend is unavailable and ValueError for tensors or a kernel size of other kinds.
    """
    library, isa = _loaded()
    for name, t in {"x": x, "grad_y": grad_y}.items():
        if t.dtype != torch.float32 or t.device.type != "cpu" or not t.is_contiguous() or t.dim() != 4:
            raise ValueError(
                f"{name} is {t.dtype}, {tuple(t.shape)} with strides {t.stride()} on {t.device}: "
                "expected contiguous float32 (B, H, W, C) on the CPU"
            )
    if x.shape != grad_y.shape:
        raise ValueError(f"x is {tuple(x.shape)} and grad_y {tuple(grad_y.shape)}: expected the same shape")
    if kernel_size not in KERNEL_SIZES:
        raise ValueError(unknown("kernel size", kernel_size, map(str, KERNEL_SIZES)))
    batch, height, width, channels = x.shape
    if not x.numel():
        return x.new_zeros(channels, 1, kernel_size, kernel_size)
    grad_weight = x.new_empty(channels, 1, kernel_size, kernel_size)
    call = _Depthwise(
        batch=batch,
        height=height,
        width=width,
        channels=channels,
        kernel=kernel_size,
        threads=torch.get_num_threads() if library.ganglion_scan_threaded() else 1,
        x=x.data_ptr(),
        grad_y=grad_y.data_ptr(),
        grad_weight=grad_weight.data_ptr(),
    )
    workspace = x.new_empty(library.ganglion_depthwise_workspace(ctypes.byref(call)))
    call.workspace = workspace.data_ptr()
    library.ganglion_depthwise_grad_weight(isa, ctypes.byref(call))
    return grad_weight


def _call(direction: str, routes: Sequence[int], tensors: dict[str, Tensor | None]) -> None:
    """Runs the kernels on contiguous tensors, named as in `_Scan`."""
    library, isa = _loaded()
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


def _loaded() -> tuple[ctypes.CDLL, int]:
    """The library and the index of the instruction set to use; RuntimeError if the backend is unavailable."""
    library = _library()
    if isinstance(library, str):
        raise RuntimeError(library)
    return library, _isa()


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
        library.ganglion_depthwise_size.restype = library.ganglion_depthwise_workspace.restype = (
            ctypes.c_int64
        )
        library.ganglion_depthwise_grad_weight.restype = None
        sizes = library.ganglion_scan_size(), library.ganglion_depthwise_size()
        if sizes != (ctypes.sizeof(_Scan), ctypes.sizeof(_Depthwise)):
            raise OSError("its arguments differ from this package's")
    except (OSError, AttributeError) as error:
        return f"{path} does not fit ({error}): build it again on this machine with `pip install .`"
    return library
