"""Evaluation against a loop written by hand."""

from __future__ import annotations

import math
from typing import ClassVar

import pytest
import timm
import torch
import torch.nn.functional as F

from ganglion.data import Batch, Unreadable
from ganglion.tasks.classification.metrics import Counts
from ganglion.tasks.evaluation import evaluate


@pytest.fixture
def network():
    torch.manual_seed(0)
    return timm.create_model("test_vmamba", num_classes=7).eval()


@pytest.fixture
def batches(network):
    """Of 5, 5 and 2 images. Two do not count; the network is right about at least one."""
    torch.manual_seed(1)
    unreadable = [Unreadable("a.jpg", "empty"), Unreadable("b.jpg", "truncated")]
    sizes = ((5, []), (5, unreadable), (2, []))
    found = [Batch(torch.randn(n, 3, 40, 48), torch.randint(7, (n,)), list(lost)) for n, lost in sizes]
    found[1].targets[1:3] = -1
    found[2].targets[0] = network(found[2].images).argmax(1)[0]
    return found


def by_hand(network, batches) -> tuple[int, int, int, float]:
    images = top1 = top5 = 0
    loss = 0.0
    with torch.no_grad():
        for batch in batches:
            for image, target in zip(batch.images, batch.targets, strict=True):
                if target == -1:
                    continue
                logits = network(image[None])[0]
                images += 1
                top1 += int(logits.argmax() == target)
                top5 += int(target in logits.argsort(descending=True)[:5])
                loss += F.cross_entropy(logits[None].double(), target[None]).item()
    return images, top1, top5, loss


def test_counts_of_a_loop_written_by_hand(network, batches):
    result = evaluate(network, batches, Counts())
    images, top1, top5, loss = by_hand(network, batches)
    assert 0 < top1 < top5 < images == 10
    assert (result.images, result.skipped) == (images, 2)
    assert (result.values["top1"], result.values["top5"]) == (100 * top1 / images, 100 * top5 / images)
    assert result.values["loss"] == pytest.approx(loss / images, rel=1e-5)
    assert result.images_per_second > 0
    assert [b.name for b in result.unreadable] == ["a.jpg", "b.jpg"]


def test_mixed_precision_and_memory_format(network, batches):
    seen = []
    hook = network.stem.register_forward_pre_hook(
        lambda module, args: seen.append(args[0].is_contiguous(memory_format=torch.channels_last))
    )
    plain = evaluate(network, batches, Counts())
    mixed = evaluate(network, batches, Counts(), amp=torch.bfloat16, channels_last=True)
    hook.remove()
    assert seen == [False] * 3 + [True] * 3
    assert (
        mixed.values["loss"] == pytest.approx(plain.values["loss"], rel=0.03)
        and mixed.values["loss"] != plain.values["loss"]
    )


def test_progress_sees_the_sums_grow(network, batches):
    seen = []
    evaluate(network, batches, Counts(), progress=lambda counts: seen.append(counts.images))
    assert seen == [5, 8, 10]


def test_nothing_to_count(network, batches):
    batches[1].targets[:] = -1
    result = evaluate(network, batches[1:2], Counts())
    assert (result.images, result.skipped) == (0, 2) and math.isnan(result.values["top1"])


def test_train_mode_is_refused(network, batches):
    with pytest.raises(ValueError, match=r"train mode: call eval\(\)"):
        evaluate(network.train(), batches, Counts())


def test_a_batch_of_dictionaries_reaches_the_metrics(network):
    """Targets may be a list of dictionaries; what is in them moves with the batch."""
    seen = []

    class Sizes:
        TITLES: ClassVar[dict[str, str]] = {}
        images, not_finite = 0, 0

        def update(self, output, batch):
            assert all(target["boxes"].device == output.device for target in batch.targets)
            seen.extend(len(target["boxes"]) for target in batch.targets)
            self.images += len(batch.targets)

        def reduce(self):
            return self

        def values(self):
            return {"boxes": float(sum(seen))}

    batch = Batch(torch.randn(2, 3, 40, 48), [{"boxes": torch.zeros(3, 4)}, {"boxes": torch.zeros(1, 4)}], [])
    result = evaluate(network, [batch], Sizes())
    assert result.values == {"boxes": 4.0} and result.images == 2 and seen == [3, 1]
