"""The native library: where it lies, which of its instruction sets is used, how it is called."""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from pathlib import Path

import torch

from ...errors import unknown

#: `ElementType` of src/elements.h.
ELEMENTS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
#: `Activation` of src/activation.h.
ACTIVATIONS = {"none": 0, "silu": 1, "gelu": 2}

ISA_ENV = "GANGLION_CPU_ISA"


class Scan(ctypes.Structure):
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


class Sequence(ctypes.Structure):
    """`Sequence` of src/selective_scan.h."""

    _fields_ = [
        ("data", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("element", "batch", "channel", "step")),
    ]


class Weights(ctypes.Structure):
    """`Weights` of src/selective_scan.h."""

    _fields_ = [
        ("data", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("constant", "batch", "group", "state")),
    ]


class SelectiveScan(ctypes.Structure):
    """`SelectiveScan` of src/selective_scan.h."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("batch", "channels", "length", "groups", "state")),
        *((name, ctypes.c_int64) for name in ("softplus", "threads")),
        *((name, Sequence) for name in ("u", "delta", "z", "y")),
        *((name, Weights) for name in ("B", "C")),
        *((name, ctypes.c_void_p) for name in ("A", "D", "delta_bias", "initial_state")),
        *((name, ctypes.c_void_p) for name in ("last_state", "carry", "workspace")),
        *((name, Sequence) for name in ("grad_y", "grad_u", "grad_delta", "grad_z")),
        *((name, ctypes.c_void_p) for name in ("grad_last_state", "grad_B", "grad_C", "grad_A")),
        *((name, ctypes.c_void_p) for name in ("grad_D", "grad_delta_bias", "grad_initial_state")),
    ]


class Depthwise(ctypes.Structure):
    """`Depthwise` of src/depthwise.h."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("batch", "height", "width", "channels", "kernel", "threads")),
        *((name, ctypes.c_void_p) for name in ("x", "grad_y", "workspace", "grad_weight")),
    ]


class Convolution(ctypes.Structure):
    """`Convolution` of src/convolution.h."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("batch", "height", "width", "channels")),
        *((name, ctypes.c_int64) for name in ("kernel", "stride", "padding")),
        *((name, ctypes.c_int64) for name in ("residual", "activation", "element", "threads")),
        *((name, ctypes.c_void_p) for name in ("x", "weight", "bias", "workspace", "y")),
    ]


class Pointwise(ctypes.Structure):
    """`Pointwise` of src/pointwise.h."""

    _fields_ = [
        *(
            (name, ctypes.c_int64)
            for name in ("rows", "channels", "activation", "x_type", "y_type", "threads")
        ),
        *((name, ctypes.c_void_p) for name in ("x", "bias", "y")),
    ]


#: The operators and what their functions take.
_CALLS = {
    "scan": Scan,
    "selective_scan": SelectiveScan,
    "depthwise": Depthwise,
    "convolution": Convolution,
    "pointwise": Pointwise,
}
_WITHOUT_WORKSPACE = ("pointwise",)
_KERNELS = ("scan_forward", "scan_backward", "selective_scan_forward", "selective_scan_backward")
_KERNELS += ("depthwise_grad_weight", "convolution_forward", "pointwise_forward")


def unavailable() -> str | None:
    """Why this backend cannot run here, None if it can."""
    library = _library()
    return library if isinstance(library, str) else None


def instruction_sets() -> tuple[str, ...]:
    """The instruction sets that this machine can run, fastest first; empty if the backend is unavailable."""
    return tuple(_indices())


def path() -> Path:
    """Where the library lies, whether or not it is there."""
    name = {"win32": "ganglion_scan.dll", "darwin": "libganglion_scan.dylib"}.get(
        sys.platform, "libganglion_scan.so"
    )
    return Path(__file__).parent / name


def loaded() -> tuple[ctypes.CDLL, int]:
    """The library and the index of the instruction set to use; RuntimeError if the backend is unavailable."""
    library = _library()
    if isinstance(library, str):
        raise RuntimeError(library)
    return library, _isa()


def threads(library: ctypes.CDLL) -> int:
    """On how many threads a call runs."""
    return torch.get_num_threads() if library.ganglion_scan_threaded() else 1


def address(tensor: torch.Tensor | None) -> int | None:
    """Of the memory of a tensor that may be missing."""
    return None if tensor is None else tensor.data_ptr()


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
    file = path()
    if not file.exists():
        return (
            f"{file} does not exist: the package was installed or checked out without building its native code. "
            "With a C++17 compiler, `pip install .` builds it (`pip install -e .` in a checkout)"
        )
    try:
        library = ctypes.CDLL(str(file))
        library.ganglion_scan_name.restype = ctypes.c_char_p
        for operator, structure in _CALLS.items():
            for function in ("size",) if operator in _WITHOUT_WORKSPACE else ("size", "workspace"):
                getattr(library, f"ganglion_{operator}_{function}").restype = ctypes.c_int64
            if getattr(library, f"ganglion_{operator}_size")() != ctypes.sizeof(structure):
                raise OSError("its arguments differ from this package's")
        for kernel in _KERNELS:
            getattr(library, f"ganglion_{kernel}").restype = None
    except (OSError, AttributeError) as error:
        return f"{file} does not fit ({error}): build it again on this machine with `pip install .`"
    return library
