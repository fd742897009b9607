"""What a task measures: a sum over batches and processes, and the numbers that come of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self

import torch
import torch.distributed as dist
from torch import Tensor

if TYPE_CHECKING:
    from ..data import Batch

#: A metric of `values()`, and whether more or less of it is better.
Monitor = tuple[str, Literal["max", "min"]]


class Metric(Protocol):
    """What looks at every batch."""

    def update(self, output: Any, batch: Batch) -> None:
        """output: of the network in eval mode, for the images of the batch. Both on the network's device."""
        ...


class Metrics(Metric, Protocol):
    """What a task measures.

    images: how many were counted. not_finite: for how many of them the output has a NaN, or is infinite.
    TITLES: how a table names the values; "%" at the end is their unit. Others go by their own name.
    """

    TITLES: Mapping[str, str]

    @property
    def images(self) -> int: ...

    @property
    def not_finite(self) -> int: ...

    def reduce(self) -> Self:
        """The same over all processes of torch.distributed, if it is initialised; to be called by all of them."""
        ...

    def values(self) -> dict[str, float]:
        """The numbers by name, the same names whatever was counted; NaN where nothing was. All of them are logged,
        may be monitored, and are printed."""
        ...


def over_processes(sums: Tensor) -> Tensor:
    """The sums of all processes of torch.distributed, if it is initialised; to be called by all of them."""
    total = sums.clone()
    if dist.is_available() and dist.is_initialized():
        # A process without images has its zeros on the CPU.
        total = total.to("cuda" if "nccl" in dist.get_backend() else "cpu")
        dist.all_reduce(total)
    return total


class Mean:
    """The mean over images of one number for each, which validation logs and tables print as `name`.

    of: from the output and the targets of a batch to these numbers, (B,). Images whose target has a NaN do not count.
    title: how tables name it.
    """

    def __init__(self, name: str, of: Callable[[Any, Tensor], Tensor], title: str = ""):
        self.TITLES: Mapping[str, str] = {name: title or name}
        self._name, self._of = name, of
        self._sums = torch.zeros(3, dtype=torch.float64)  # images, not finite, the numbers

    def update(self, output: Any, batch: Batch) -> None:
        assert isinstance(batch.targets, Tensor)
        counted_B = ~batch.targets.flatten(1).isnan().any(1)
        found = self._of(output, batch.targets)[counted_B].detach().to("cpu", torch.float64)
        added = counted_B.sum().cpu(), (~found.isfinite()).sum(), found.sum()
        self._sums += torch.stack([value.to(torch.float64) for value in added])

    def reduce(self) -> Mean:
        total = Mean(self._name, self._of, self.TITLES[self._name])
        total._sums = over_processes(self._sums).cpu()
        return total

    @property
    def images(self) -> int:
        return int(self._sums[0])

    @property
    def not_finite(self) -> int:
        return int(self._sums[1])

    def values(self) -> dict[str, float]:
        return {self._name: float(self._sums[2] / self._sums[0])}


def as_text(name: str, value: float) -> str:
    """A value as tables show it: losses with four decimals, others with two."""
    return f"{value:.{4 if 'loss' in name else 2}f}"
