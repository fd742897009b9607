"""The recurrence without a loop against the loop."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from ganglion.ops.recurrence import linear_recurrence, softplus_grad


@pytest.mark.parametrize("length", [*range(1, 18), 63, 64, 65, 601, 784, 3136])
def test_every_length_equals_the_loop(length):
    generator = torch.Generator().manual_seed(length)
    a = torch.rand(2, length, 3, generator=generator, dtype=torch.float64)
    b = torch.randn(2, length, 3, generator=generator, dtype=torch.float64)
    h, expected = torch.zeros(2, 3, dtype=torch.float64), []
    for t in range(length):
        h = a[:, t] * h + b[:, t]
        expected.append(h)
    torch.testing.assert_close(linear_recurrence(a, b), torch.stack(expected, 1), rtol=1e-12, atol=1e-12)


def test_slope_of_softplus_is_that_of_torch():
    v = torch.cat([torch.linspace(-40, 40, 321), torch.tensor([-1e4, 20.0, 20.0 + 1e-9, 1e4])]).double()
    v.requires_grad_()
    (expected,) = torch.autograd.grad(F.softplus(v).sum(), v)
    torch.testing.assert_close(softplus_grad(v.detach()), expected, rtol=1e-15, atol=0)
