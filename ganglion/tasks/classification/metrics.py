"""Top-1, top-5 and loss as sums, so that batches and processes of unequal size count as they should."""

from __future__ import annotations

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

#: The target of an image that does not count.
IGNORED = -1


class Counts:
    """Sums over the images seen so far. They stay on their device, in float64, until somebody asks.

    top1, top5: percent of the images whose label is the highest logit, or among the highest five (among all, if there
    are fewer classes). loss: mean cross-entropy, computed in float32. All are NaN when no image was counted.
    not_finite: images whose logits have no finite softmax. They are wrong, whatever the order of their logits is.
    """

    def __init__(self) -> None:
        # images, correct at 1, correct at 5, loss, not finite
        self._sums = torch.zeros(5, dtype=torch.float64)

    def update(self, logits_BC: Tensor, targets_B: Tensor) -> None:
        """Add a batch: logits of any floating dtype, class indices; targets of -1 do not count."""
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
        batch = torch.stack([s.to(wide, torch.float64).sum() for s in sums])
        self._sums = self._sums.to(wide) + batch.detach()

    def reduce(self) -> Counts:
        """The sums over all processes of torch.distributed, if it is initialised; to be called by all of them."""
        total = Counts()
        total._sums = self._sums.clone()
        if dist.is_available() and dist.is_initialized():
            # A process without images has its zeros on the CPU.
            total._sums = total._sums.to("cuda" if "nccl" in dist.get_backend() else "cpu")
            dist.all_reduce(total._sums)
        return total

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

    def update(self, logits_BC: Tensor, targets_B: Tensor) -> None:
        """Add a batch, as `Counts.update` does."""
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
