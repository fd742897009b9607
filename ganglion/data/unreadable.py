"""Counts the images that could not be used."""

from __future__ import annotations

from collections.abc import Iterable

from .types import DataError, Unreadable


class UnreadableCounter:
    """Unreadable images by name; more than the fraction `limit` of all is an error."""

    def __init__(self, limit: float):
        self.limit = limit
        self._found: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self._found)

    def add(self, found: Iterable[Unreadable]) -> None:
        self._found.update((unreadable.name, unreadable.reason) for unreadable in found)

    def found(self) -> list[Unreadable]:
        """What was counted, in the order in which it was met."""
        return [Unreadable(name, reason) for name, reason in self._found.items()]

    def check(self, total: int) -> None:
        """Raise DataError if more than the allowed fraction of `total` images is unreadable."""
        if len(self) > self.limit * total:
            raise DataError(
                f"{len(self)} of {total} images ({len(self) / total:.2%}) cannot be used, more than the allowed "
                f"{self.limit:.2%}: {self.report(3)}"
            )

    def report(self, most: int = 20) -> str:
        """How many, and the first of them."""
        lines = [f"  {name}: {reason}" for name, reason in list(self._found.items())[:most]]
        more = [f"  and {len(self) - most} more"] if len(self) > most else []
        return "\n".join([f"{len(self)} unreadable images", *lines, *more])
