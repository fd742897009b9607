"""How near a result must come to its float64 reference, by dtype."""

from __future__ import annotations

import torch
from torch import Tensor

#: Relative root-mean-square error of an operator or layer, forward and every gradient.
RELATIVE_RMS = {
    torch.float64: 1e-11,
    torch.float32: 3e-6,
    torch.float16: 1e-3,
    torch.bfloat16: 1e-2,
}
#: The same of several operators in a row, of second derivatives, and against golden data, whose own errors count.
RELATIVE_RMS_COMPOSED = {
    torch.float64: 1e-9,
    torch.float32: 1e-5,
    torch.bfloat16: 4e-2,
}


def relative_rms(found: Tensor, reference: Tensor) -> float:
    """Root-mean-square error of `found`, relative to that of `reference` about zero; NaN if either has one."""
    reference = reference.detach().double()
    error = (found.detach().double() - reference).square().mean().sqrt()
    return float(error / reference.square().mean().sqrt().clamp(min=1e-30))


def assert_close(found: Tensor, reference: Tensor, dtype: torch.dtype | None = None, name: str = "") -> None:
    """Fail unless shapes agree and the relative error is within the table's bound for `dtype` (found's)."""
    assert found.shape == reference.shape, f"{name}: {tuple(found.shape)} is not {tuple(reference.shape)}"
    bound = RELATIVE_RMS[dtype or found.dtype]
    error = relative_rms(found, reference)
    assert error <= bound, f"{name}: relative RMS error {error:.2e}, bound {bound:.0e}"
