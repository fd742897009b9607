"""Memory lengths against a walk that multiplies decays until they are 1/e."""

from __future__ import annotations

import math

import numpy as np
import pytest
import timm
import torch

from ganglion.analysis import scan_statistics
from ganglion.analysis.scan_statistics import QUANTILES, memory_lengths
from ganglion.ops.attention import Walk
from tests.ops.test_attention import walked


@pytest.mark.parametrize("pattern", ("rot2d", "lines"))
def test_steps_until_a_third_is_left(pattern):
    _, found = walked(pattern, 6, 8, 2)
    for walk in found:
        lengths, beyond = memory_lengths(walk)
        assert lengths.shape == beyond.shape == (48, 6, 2)
        for i, d, n in np.ndindex(48, 6, 2):
            end = i - i % walk.line + walk.line
            left, steps = 1.0, 0
            while left > math.exp(-1) and i + steps + 1 < end:
                steps += 1
                left *= math.exp(walk.dt[i + steps, d] * walk.A[d, n])
            if left <= math.exp(-1):
                assert not beyond[i, d, n] and steps - 1 < lengths[i, d, n] <= steps
            else:
                assert beyond[i, d, n]
                rest = (1 + math.log(left)) / -float(walk.A[d, n] * walk.dt[:, d].mean())
                assert lengths[i, d, n] == pytest.approx(end - 1 - i + rest)


def test_a_constant_step_is_read_off():
    ones = torch.ones(10, 1)
    walk = Walk(dt=ones / 8, A=-ones[:1], B=ones, C=ones, order=torch.arange(10), line=10)
    lengths, beyond = memory_lengths(walk)
    torch.testing.assert_close(lengths, torch.full((10, 1, 1), 8.0, dtype=torch.float64))
    assert beyond.flatten().tolist() == [False] * 2 + [True] * 8


def test_a_network():
    network = timm.create_model("test_sparx_mamba")
    rows = scan_statistics(network, torch.randn(2, 3, 64, 96))
    assert len(rows) == 9 * 4 and [row.index for row in rows[:5]] == [0, 1, 2, 3, 0]
    assert rows[0].size == (16, 24) and rows[0].stride == 4 and len(rows[0].steps) == len(QUANTILES)
    assert rows[0].lines == rows[0].median / 24 and rows[1].lines == rows[1].median / 16
    assert all(list(row.steps) == sorted(row.steps) and 0 <= row.beyond <= 1 for row in rows)
    with pytest.raises(ValueError, match="ResNet has no scans"):
        scan_statistics(timm.create_model("test_resnet"), torch.randn(1, 3, 32, 32))
