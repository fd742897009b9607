"""How far the colours are from those of the images."""

from ganglion.data import open_dataset
from ganglion.tasks.evaluation import Labelled

from .prediction import pixels

MONITOR = ("error", "min")


class MeanError:
    def __init__(self):
        self.TITLES = {"error": "mean error"}
        self.images, self.not_finite, self.total = 0, 0, 0.0

    def update(self, output, batch):
        counted = batch.targets.isfinite().all(dim=1)
        self.images += int(counted.sum())
        self.total += float((output - batch.targets).abs().mean(dim=1)[counted].sum())

    def reduce(self):
        return self

    def values(self):
        return {"error": self.total / self.images if self.images else float("nan")}


def with_colour(image, target):
    values = pixels(image)
    return values, None if target is None else values.mean(dim=(1, 2))


def labelled(model, request):
    source = open_dataset(request.root, split=request.split or "val")
    return Labelled(source=source, transform=lambda size: with_colour, metrics=MeanError)
