"""Images with labels: sources, augmentation, batches."""

from .broken import BrokenCounter
from .coco import CocoSource, read_coco
from .dataset import open_dataset
from .decode import BrokenImage, open_image
from .files import FolderFiles, without
from .loader import Collate, Loader, eval_loader, stack, train_loader
from .source import ImageSource, IndexedSource
from .split import split_off
from .transforms import Augmentation, ImageTransform, Transform, eval_transform, per_channel, train_transform
from .types import Batch, Broken, DataError, MissingSplit, Processes, Ragged, Targets

__all__ = [
    "Augmentation",
    "Batch",
    "Broken",
    "BrokenCounter",
    "BrokenImage",
    "CocoSource",
    "Collate",
    "DataError",
    "FolderFiles",
    "ImageSource",
    "ImageTransform",
    "IndexedSource",
    "Loader",
    "MissingSplit",
    "Processes",
    "Ragged",
    "Targets",
    "Transform",
    "eval_loader",
    "eval_transform",
    "open_dataset",
    "open_image",
    "per_channel",
    "read_coco",
    "split_off",
    "stack",
    "train_loader",
    "train_transform",
    "without",
]
