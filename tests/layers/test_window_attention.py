"""Which pixels of a map attend to each other."""

from __future__ import annotations

import pytest
import torch

from ganglion.layers.window_attention import partition


@pytest.mark.parametrize(
    ("height", "width", "shifted"), [(4, 4, False), (3, 2, False), (4, 8, True), (8, 3, True), (5, 5, True)]
)
def test_windows_are_shifted_if_the_map_is_larger_than_one_in_any_direction(height, width, shifted):
    x = torch.arange(1.0, height * width + 1).reshape(1, height, width, 1)
    still, moved = (partition(x, 4, shift) for shift in (False, True))
    assert still.shape == moved.shape == (-(-height // 4) * -(-width // 4), 16, 1)
    assert torch.equal(still, moved) != shifted
    for windows in (still, moved):  # every pixel once, and nothing but padding beside
        assert sorted(windows[windows > 0].tolist()) == x.flatten().tolist()
