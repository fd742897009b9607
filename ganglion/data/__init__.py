"""Images with labels: sources, augmentation, batches."""

from .broken import BrokenCounter
from .dataset import open_dataset
from .decode import BrokenImage, open_image
from .files import FolderFiles, without
from .loader import Loader, eval_loader, train_loader
from .source import ImageSource
from .split import split_off
from .transforms import Augmentation, eval_transform, per_channel, train_transform
from .types import Batch, Broken, DataError, MissingSplit

__all__ = [
    "Augmentation",
    "Batch",
    "Broken",
    "BrokenCounter",
    "BrokenImage",
    "DataError",
    "FolderFiles",
    "ImageSource",
    "Loader",
    "MissingSplit",
    "eval_loader",
    "eval_transform",
    "open_dataset",
    "open_image",
    "per_channel",
    "split_off",
    "train_loader",
    "train_transform",
    "without",
]
