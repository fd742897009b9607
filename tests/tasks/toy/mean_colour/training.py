"""The mean colour of an image, by a network of one number for each channel."""

import torch.nn.functional as F

from ganglion.data import open_dataset
from ganglion.training.data import TaskData
from ganglion.training.task import Task

from .metrics import error, with_colour
from .prediction import build


class MeanColour(Task):
    def build(self):
        return build(self.description())

    def loss(self, batch):
        return F.l1_loss(self(batch.images), batch.targets)

    def metrics(self):
        return error()

    def description(self):
        return {"data_config": {"input_size": [3, 16, 16]}}


class Images(TaskData):
    """Images in folders.

    Args:
        root: folder with a folder for each split.
    """

    def __init__(self, root: str, *, batch_size: int = 4, seed: int = 0):
        super().__init__(batch_size=batch_size, workers=0, seed=seed)
        self.root = root

    def open(self, part):
        return open_dataset(self.root, split=part)

    def transform(self, part):
        return with_colour


TASK = MeanColour
DATA = Images
