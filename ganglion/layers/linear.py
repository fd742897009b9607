"""Linear layers with what follows them."""

from __future__ import annotations

from torch import Tensor, nn

from ..ops.linear import linear_gelu_inference
from .depthwise import has_hooks


def project_and_activate(linear: nn.Module, act: nn.Module, x: Tensor) -> Tensor | None:
    """act(linear(x)) of tokens (B, L, C), where a kernel adds the bias and computes the GELU in one pass: see
    `linear_gelu_inference`.

    None elsewhere, and where somebody waits for one of the modules to be called.
    """
    if type(linear) is not nn.Linear or type(act) is not nn.GELU or act.approximate != "none":
        return None
    if has_hooks(linear) or has_hooks(act):
        return None
    return linear_gelu_inference(x, linear.weight, linear.bias)
