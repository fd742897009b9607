"""How far the colours are from those of the images."""

from ganglion.data import open_dataset
from ganglion.tasks.evaluation import Labelled
from ganglion.training.metrics import Mean

from .prediction import pixels

MONITOR = ("error", "min")


def error():
    return Mean("error", lambda output, targets: (output - targets).abs().mean(1), title="mean error")


def with_colour(image, target):
    values = pixels(image)
    return values, None if target is None else values.mean(dim=(1, 2))


def labelled(model, request):
    source = open_dataset(request.root, split=request.split or "val")
    return Labelled(source=source, transform=lambda size: with_colour, metrics=error)
