"""Products in float32 on CPUs that only emulate half precision."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..ops.emulation import emulated


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
