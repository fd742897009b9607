"""The native library: where it lies, which of its instruction sets is used, how it is called."""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from pathlib import Path

from ...errors import unknown

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


class Depthwise(ctypes.Structure):
    """`Depthwise` of src/depthwise.h."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("batch", "height", "width", "channels", "kernel", "threads")),
        *((name, ctypes.c_void_p) for name in ("x", "grad_y", "workspace", "grad_weight")),
    ]


def unavailable() -> str | None:
    """Why this backend cannot run here, None if it can."""
    library = _library()
    return library if isinstance(library, str) else None


def instruction_sets() -> tuple[str, ...]:
    """The instruction sets that this machine can run, fastest first; empty if the backend is unavailable."""
    return tuple(_indices())


def loaded() -> tuple[ctypes.CDLL, int]:
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
        if sizes != (ctypes.sizeof(Scan), ctypes.sizeof(Depthwise)):
            raise OSError("its arguments differ from this package's")
    except (OSError, AttributeError) as error:
        return f"{path} does not fit ({error}): build it again on this machine with `pip install .`"
    return library
