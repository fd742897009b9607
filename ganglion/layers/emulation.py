"""Half precision on CPUs that only emulate it."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

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


class Float32Products(TorchFunctionMode):
    """Linear layers and convolutions of emulated dtypes run in float32, whichever module they are in."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if args and func in (F.linear, F.conv2d) and emulated(args[0]):
            full = [a.float() if isinstance(a, Tensor) else a for a in args]
            return func(*full, **kwargs).to(args[0].dtype)
        return func(*args, **kwargs)
