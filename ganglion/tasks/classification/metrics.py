"""Top-1, top-5 and loss as sums, so that batches and processes of unequal size count as they should; and what
labelled images are to a network that has classes of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...data import Batch, ImageTransform, eval_transform, open_dataset
from ...data.decode import Raw
from ...training.metrics import Monitor, over_processes
from ..evaluation import Labelled, Request
from ..loaded_model import LoadedModel

#: The target of an image that does not count.
IGNORED = -1

#: What decides which checkpoint is the best.
MONITOR: Monitor = ("top1", "max")


class Counts:
    """Sums over the images seen so far. They stay on their device, in float64, until somebody asks.

    top1, top5: percent of the images whose label is the highest logit, or among the highest five (among all, if there
    are fewer classes). loss: mean cross-entropy, computed in float32. All are NaN when no image was counted.
    not_finite: images whose logits have no finite softmax. They are wrong, whatever the order of their logits is.
    """

    def __init__(self) -> None:
        # images, correct at 1, correct at 5, loss, not finite
        self._sums = torch.zeros(5, dtype=torch.float64)

    TITLES: Mapping[str, str] = {"top1": "top-1 %", "top5": "top-5 %"}

    def update(self, output: Tensor, batch: Batch) -> None:
        """Add a batch. output: logits (B, C) of any floating dtype. Targets are class indices; those of -1 do not
        count."""
        logits_BC, targets_B = output, _labels(batch)
        finite_B = is_finite(logits_BC)
        best_Bk = logits_BC.topk(min(5, logits_BC.shape[1]), dim=1).indices
        correct_Bk = (best_Bk == targets_B[:, None]) & finite_B[:, None]
        loss = F.cross_entropy(logits_BC.float(), targets_B, ignore_index=IGNORED, reduction="none")
        # Not every device has float64.
        wide = "cpu" if loss.device.type == "mps" else loss.device
        counted_B = targets_B != IGNORED
        sums = (
            counted_B.sum(),
            correct_Bk[:, 0].sum(),
            correct_Bk.sum(),
            loss,
            (counted_B & ~finite_B).sum(),
        )
        added = torch.stack([s.to(wide, torch.float64).sum() for s in sums])
        self._sums = self._sums.to(wide) + added.detach()

    def reduce(self) -> Counts:
        """The sums over all processes of torch.distributed, if it is initialised; to be called by all of them."""
        total = Counts()
        total._sums = over_processes(self._sums)
        return total

    def values(self) -> dict[str, float]:
        return {"top1": self.top1, "top5": self.top5, "loss": self.loss}

    @property
    def images(self) -> int:
        return int(self._sums[0])

    @property
    def correct1(self) -> int:
        return int(self._sums[1])

    @property
    def correct5(self) -> int:
        return int(self._sums[2])

    @property
    def loss_sum(self) -> float:
        return float(self._sums[3])

    @property
    def not_finite(self) -> int:
        return int(self._sums[4])

    @property
    def top1(self) -> float:
        return 100 * self.correct1 / self.images if self.images else float("nan")

    @property
    def top5(self) -> float:
        return 100 * self.correct5 / self.images if self.images else float("nan")

    @property
    def loss(self) -> float:
        return self.loss_sum / self.images if self.images else float("nan")


def _labels(batch: Batch) -> Tensor:
    assert isinstance(batch.targets, Tensor)
    return batch.targets


def is_finite(logits_BC: Tensor) -> Tensor:
    """(B,) bool: whether an image's probabilities are numbers. A logit of -inf is, next to a finite one."""
    return logits_BC.amax(dim=1).isfinite()


class Answers:
    """What the network said of every image, in the order of the loader; kept in main memory, 24 bytes an image.

    targets: (N,) int64, -1 for what does not count. predicted: (N,) int64, the most probable class, -1 where the output
    is not finite. probability, target_probability: (N,) float32, of these two, NaN where there is none.
    """

    def __init__(self) -> None:
        self._batches: list[tuple[Tensor, ...]] = []

    def update(self, output: Tensor, batch: Batch) -> None:
        """Add a batch, as `Counts.update` does."""
        logits_BC, targets_B = output, _labels(batch)
        finite_B = is_finite(logits_BC)
        shares_BC = logits_BC.float().softmax(dim=1)
        probability_B, predicted_B = shares_BC.max(dim=1)
        of_target_B = shares_BC.gather(1, targets_B.clamp(min=0)[:, None])[:, 0]
        of_target_B = of_target_B.masked_fill(targets_B == IGNORED, float("nan"))
        predicted_B = predicted_B.masked_fill(~finite_B, -1)
        self._batches.append(tuple(t.cpu() for t in (targets_B, predicted_B, probability_B, of_target_B)))

    def _all(self, i: int) -> np.ndarray:
        parts = [batch[i].numpy() for batch in self._batches]
        return np.concatenate(parts) if parts else np.empty(0)

    @property
    def targets(self) -> np.ndarray:
        return self._all(0)

    @property
    def predicted(self) -> np.ndarray:
        return self._all(1)

    @property
    def probability(self) -> np.ndarray:
        return self._all(2)

    @property
    def target_probability(self) -> np.ndarray:
        return self._all(3)


def labelled(model: LoadedModel, request: Request) -> Labelled:
    """Labelled images for a network, their labels as indices of its output.

    Raises DataError where there are none; ValueError for more classes than the network has, or for other ones.
    """
    source = open_dataset(
        request.root,
        split="validation" if request.split is None else request.split,
        or_root=request.split is None,
        reader=request.reader,
        channels=model.data_config["input_size"][0],
        class_map=request.class_map,
        labels=request.labels,
        limit=request.limit,
    )
    if source.num_classes > model.num_classes:
        raise ValueError(
            f"the data have {source.num_classes} classes, the network {model.num_classes}: expected its classes"
        )
    warning, indices = "", None
    if request.class_map is None and not request.by_number:
        if model.class_names is None or source.class_names is None:
            who = "network" if model.class_names is None else "data"
            warning = f"the {who} names no classes: labels are taken for indices of its outputs"
        try:
            indices = match_classes(model.class_names, source.class_names)
        except ValueError as error:
            raise ValueError(
                f"{error}. Expected data of the network's classes; --class-map FILE, their names in the order of its "
                "outputs; or --by-number, to take labels for indices of its outputs"
            ) from error
    return Labelled(
        source=source,
        transform=lambda size: _Matched(eval_transform(model.data_config, size), indices),
        metrics=Counts,
        warning=warning,
    )


class _Matched:
    """A transform of the image, and of its label to an index of the network's output."""

    def __init__(self, transform: ImageTransform, indices: Sequence[int] | None):
        self.transform, self.indices = transform, indices

    def __call__(self, image: Raw, target: int | None) -> tuple[Tensor, Any]:
        if target is not None and self.indices is not None:
            target = self.indices[target]
        return self.transform(image, target)


def match_classes(network: Sequence[str] | None, data: Sequence[str] | None) -> list[int] | None:
    """For each class of the data its index in the network's output, by name; None where they agree, or where one side
    names no classes, so that labels are indices already.

    Raises ValueError for classes of the data that the network does not have.
    """
    if network is None or data is None or list(data) == list(network[: len(data)]):
        return None
    foreign = sorted(set(data) - set(network))
    if len(foreign) == len(set(data)):
        raise ValueError(
            f"no class of the data has the name of one of the network's: class 0 is {data[0]!r} there and "
            f"{network[0]!r} here"
        )
    if foreign:
        names = ", ".join(foreign[:8]) + (", ..." if len(foreign) > 8 else "")
        raise ValueError(
            f"the network does not know {len(foreign)} of the {len(data)} classes of the data: {names}"
        )
    indices = {name: index for index, name in reversed(list(enumerate(network)))}
    return [indices[name] for name in data]
