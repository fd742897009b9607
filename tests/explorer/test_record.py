"""What a page costs beyond its page: one forward pass, and one backward pass to each stage's receptive field."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import timm
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

from ganglion.explorer import explore
from ganglion.tasks import DEFAULT, find_task
from ganglion.tasks.loaded_model import LoadedModel


class Calls(TorchDispatchMode):
    """How often each operator of the library runs."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.counts[func.__name__] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("fields", [True, False])
def test_one_forward_pass_and_one_backward_pass_for_each_field(fields):
    network = timm.create_model("test_vmamba").eval()
    config = {"input_size": (3, 64, 64), "mean": (0.5,) * 3, "std": (0.5,) * 3}
    config |= {"interpolation": "bicubic", "crop_pct": 1.0, "crop_mode": "center"}
    model = LoadedModel(
        name="test_vmamba", network=network, data_config=config, class_names=None, description="untrained",
        task=find_task(DEFAULT),
    )  # fmt: skip
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    with Calls() as seen:
        data = explore(model, [image], fields=fields)
    stage_of = [layer["stage"] for layer in data["layers"]]
    assert seen.counts["scan2d.default"] == len(stage_of)
    backward = sum(stage <= last for last in range(4) for stage in stage_of) if fields else 0
    assert seen.counts["scan2d_backward.default"] == backward
