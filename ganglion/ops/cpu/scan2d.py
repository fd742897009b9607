"""`scan2d` by the native library."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from ..routes import CHUNK
from .library import ELEMENTS, Scan, loaded

_BLOCK = 32
#: Backward works on about this many pieces at once, however many threads there are.
_PIECES = 64

#: Parameters come in the state's dtype: see `ganglion.ops.dispatch`.
PREPARES = False


def rejects(x: Tensor, *, d_state: int, dt_rank: int) -> str | None:
    """Why this backend does not serve the call, None if it does."""
    if x.dtype not in ELEMENTS:
        return f"it computes in float32 and x is {x.dtype}"
    return None


def forward(
    x: Tensor,
    proj: Tensor,
    dt_weight: Tensor,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor | None,
    routes: Sequence[int],
) -> tuple[Tensor, Tensor]:
    """See `ganglion.ops.dispatch`."""
    batch, height, width, channels = x.shape
    y = torch.empty_like(x)
    chunks = (height * width + CHUNK - 1) // CHUNK
    carry = torch.empty(batch, len(routes) * chunks * A.shape[2] * channels, dtype=torch.float32)
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
    """See `ganglion.ops.dispatch`."""
    inputs = {"x": x, "proj": proj, "dt_weight": dt_weight, "dt_bias": dt_bias, "A": A, "D": D}
    if not x.numel():
        return tuple(None if t is None else torch.zeros_like(t) for t in inputs.values())
    grads = {f"grad_{name}": None if t is None else torch.empty_like(t) for name, t in inputs.items()}
    _call("backward", routes, inputs | grads | {"carry": carry, "grad_y": grad_y})
    return tuple(grads.values())


def _call(direction: str, routes: Sequence[int], tensors: dict[str, Tensor | None]) -> None:
    """Runs the kernels on contiguous tensors, named as in `Scan`."""
    library, isa = loaded()
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
    scan = Scan(
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
        element=ELEMENTS[x.dtype],
        codes=ctypes.addressof(codes),
        **{name: tensor.data_ptr() for name, tensor in tensors.items() if tensor is not None},
    )
    workspace = torch.empty(library.ganglion_scan_workspace(isa, ctypes.byref(scan)), dtype=torch.float32)
    scan.workspace = workspace.data_ptr()
    getattr(library, f"ganglion_scan_{direction}")(isa, ctypes.byref(scan))
