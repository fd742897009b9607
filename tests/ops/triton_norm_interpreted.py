"""The Triton kernels of `add_norm`, run by Triton's interpreter on CPU tensors: see `triton_interpreted.py`.

TRITON_INTERPRET=1 python -m pytest tests/ops/triton_norm_interpreted.py
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from ganglion.ops import add_norm, norm
from ganglion.ops.triton import norm_launch
from tests.ops.norm_cases import NAMES, case, error, exact
from tests.tolerances import assert_close

pytestmark = pytest.mark.usefixtures("poison")

#: (B, L, C): one tile and several, full and not; a program of several tiles; an image of one tile and of several parts.
SHAPES = [(2, 5, 3), (1, 1, 6), (3, 70, 96), (2, 300, 40)]


@pytest.mark.parametrize("per_image", [False, True])
@pytest.mark.parametrize("form", ["norm", "bare", "add", "scaled"])
@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients(shape, form, per_image, monkeypatch):
    monkeypatch.setattr(norm_launch, "TILE", 256)  # more tiles, of less work for the interpreter
    monkeypatch.setattr(norm_launch, "PROGRAMS", 1)
    monkeypatch.setattr(norm_launch, "WHOLE", 1024)
    norm_launch._remembered.cache_clear()
    args = case(shape, form)
    found, grads = exact(args, per_image, backend="triton")
    expected, expected_grads = exact([None if t is None else t.double() for t in args], per_image)
    for name, f, e in zip(("y", "total"), found, expected, strict=True):
        assert error(f, e) < 1e-6, name
    for name, f, e in zip(NAMES, grads, expected_grads, strict=True):
        assert (f is None) == (e is None)
        assert f is None or error(f, e) < 1e-5, name


@pytest.mark.parametrize("per_image", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_rounded_once(dtype, per_image):
    x, add, *rest = case((2, 9, 24), "scaled")
    weight, bias = rest[2:]
    total, y = add_norm(x, add.to(dtype), weight, bias, per_image=per_image, dtype=dtype, backend="triton")
    assert total.dtype == torch.float32 and y.dtype == dtype
    expected = x + add.to(dtype)
    assert_close(total, expected)
    expected = norm(expected, weight, bias, per_image=per_image, backend="triton")
    if dtype == torch.float16:
        assert torch.equal(y, expected.to(dtype))
    assert error(y, expected) < torch.finfo(dtype).eps  # the interpreter cuts bfloat16 off


@pytest.mark.parametrize("per_image", [False, True])
def test_a_large_mean_costs_no_digits(per_image):
    """As sums of squares it would cost all of them."""
    x = case((2, 200, 24), "norm")[0] + 1000
    y = norm(x, per_image=per_image, backend="triton")
    axes = (200, 24) if per_image else (24,)
    expected = F.layer_norm(
        x.double().flatten(1) if per_image else x.double(), [axes[0] * 24] if per_image else axes
    )
    assert error(y, expected.view(x.shape)) < 1e-4
