"""What the tests of checkpoints share, such as what every refused one has to satisfy."""

from __future__ import annotations

import pytest
import torch

from ganglion.models import CheckpointError, load_checkpoint


def snapshot(model):
    return {k: v.clone() for k, v in model.state_dict().items()}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name in expected:
        assert torch.equal(found[name], expected[name]), name


def under(prefix, state):
    return {prefix + k: v for k, v in state.items()}


def assert_refused(model, source, *parts: str, error: type[Exception] = CheckpointError, **kwargs):
    """Loading raises, says every one of `parts`, and changes nothing."""
    before = snapshot(model)
    with pytest.raises(error) as info:
        load_checkpoint(model, source, **kwargs)
    for part in parts:
        assert part in str(info.value), f"{part!r} not in {info.value}"
    assert_same(model.state_dict(), before)
    return info.value
