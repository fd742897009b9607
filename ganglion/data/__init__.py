"""Images with labels: sources, augmentation, batches."""

from .broken import BrokenCounter
from .dataset import open_dataset
from .decode import BrokenImage, open_image
from .loader import Loader, eval_loader, train_loader
from .source import ImageSource
from .transforms import Augmentation, eval_transform, per_channel, train_transform
from .types import Batch, Broken, DataError

__all__ = [
    "Augmentation",
    "Batch",
    "Broken",
    "BrokenCounter",
    "BrokenImage",
    "DataError",
    "ImageSource",
    "Loader",
    "eval_loader",
    "eval_transform",
    "open_dataset",
    "open_image",
    "per_channel",
    "train_loader",
    "train_transform",
]
