"""What a task measures: a sum over batches and processes, and the numbers that come of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self

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


def as_text(name: str, value: float) -> str:
    """A value as tables show it: losses with four decimals, others with two."""
    return f"{value:.{4 if 'loss' in name else 2}f}"
