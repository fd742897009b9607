"""Top-1, top-5 and loss as sums, so that batches and processes of unequal size count as they should."""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

#: The target of an image that does not count.
IGNORED = -1


class Counts:
    """Sums over the images seen so far. They stay on their device, in float64, until somebody asks.

    top1, top5: percent of the images whose label is the highest logit, or among the highest five (among all, if there
    are fewer classes). loss: mean cross-entropy, computed in float32. All are nan when no image was counted.
    """

    def __init__(self) -> None:
        self._sums = torch.zeros(4, dtype=torch.float64)  # images, correct at 1, correct at 5, loss

    def update(self, logits_BC: Tensor, targets_B: Tensor) -> None:
        """Add a batch: logits of any floating dtype, class indices; targets of -1 do not count."""
        correct_Bk = logits_BC.topk(min(5, logits_BC.shape[1]), dim=1).indices == targets_B[:, None]
        loss = F.cross_entropy(logits_BC.float(), targets_B, ignore_index=IGNORED, reduction="none")
        # Not every device has float64.
        wide = "cpu" if loss.device.type == "mps" else loss.device
        sums = ((targets_B != IGNORED).sum(), correct_Bk[:, 0].sum(), correct_Bk.sum())
        batch = torch.stack([*(s.to(wide, torch.float64) for s in sums), loss.to(wide, torch.float64).sum()])
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
    def top1(self) -> float:
        return 100 * self.correct1 / self.images if self.images else float("nan")

    @property
    def top5(self) -> float:
        return 100 * self.correct5 / self.images if self.images else float("nan")

    @property
    def loss(self) -> float:
        return self.loss_sum / self.images if self.images else float("nan")
