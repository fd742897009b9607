"""Half precisions that a CPU only emulates."""

from __future__ import annotations

import torch
from torch import Tensor

#: Half precisions in which this machine's matrix products on the CPU are emulated, some ten times slower than float32.
_EMULATED = tuple(
    dtype
    for dtype, supported in (
        (torch.bfloat16, torch.ops.mkldnn._is_mkldnn_bf16_supported),
        (torch.float16, torch.ops.mkldnn._is_mkldnn_fp16_supported),
    )
    if not supported()
)


def emulated(x: Tensor) -> bool:
    """Whether this machine emulates matrix products of x."""
    return isinstance(x, Tensor) and x.device.type == "cpu" and x.dtype in _EMULATED
