"""What `ganglion validate` says of single classes and images, beside the numbers of all: a class for each task."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

if TYPE_CHECKING:
    from ganglion.data import ImageSource
    from ganglion.tasks.evaluation import Result
    from ganglion.tasks.loaded_model import LoadedModel
    from ganglion.training.metrics import Metric

#: Options that only some tasks serve, and what a file that they name has to end in, if there is one.
OPTIONS = ("--per-class", "--predictions", "--plot", "--worst")


class Details(Protocol):
    """Made before the evaluation; `finish` is called after it, and before everything else.

    SERVES: those of `OPTIONS` that the task has, and the extensions of the files that they name.
    REFUSES: options of the data that say nothing to the task.
    also: what looks at every batch beside the task's metrics.
    """

    SERVES: ClassVar[dict[str, tuple[str, ...]]]
    REFUSES: ClassVar[tuple[str, ...]]

    def __init__(self, loaded: LoadedModel, source: ImageSource): ...

    @property
    def also(self) -> Sequence[Metric]: ...

    def finish(self, result: Result) -> None: ...

    def show(self) -> None:
        """Print tables, below the numbers."""
        ...

    def summary(self) -> dict[str, Any]:
        """The same for JSON."""
        ...

    def write(self, args: argparse.Namespace, title: str) -> None:
        """Write the files that the options name. Raises OSError."""
        ...


def details_of(task: str) -> type[Details] | None:
    """Those of a task by its name; None for one that has none."""
    from . import answers, objects, regions

    known: dict[str, type[Details]] = {
        "classification": answers.Answered,
        "detection": objects.Detected,
        "segmentation": regions.Segmented,
    }
    return known.get(task)


def check(args: argparse.Namespace, loaded: LoadedModel) -> None:
    """Exit with status 2 where an option is given that the network's task does not serve, or not with such a file."""
    details = details_of(loaded.task.name)
    serves, refuses = ({}, ()) if details is None else (details.SERVES, details.REFUSES)
    for option in (*OPTIONS, *refuses):
        value = getattr(args, option[2:].replace("-", "_")) or None
        if value is None or (option == "--plot" and args.sizes):
            continue
        if option not in serves:
            args.parser.error(f"{loaded.name} is of {loaded.task.name}, which has no {option}")
        if serves[option] and value.suffix not in serves[option]:
            args.parser.error(f"{option} {value}: expected a name that ends in {' or '.join(serves[option])}")
