"""Images with labels: sources, augmentation, batches."""

from .coco import CocoSource, read_coco
from .dataset import open_dataset
from .decode import UnreadableImage, open_image
from .files import FolderFiles, without
from .loader import Collate, Loader, eval_loader, stack, train_loader
from .source import ImageSource, IndexedSource
from .split import split_off
from .transforms import Augmentation, ImageTransform, Transform, eval_transform, per_channel, train_transform
from .types import Batch, DataError, MissingSplit, Processes, Ragged, Targets, Unreadable
from .unreadable import UnreadableCounter

__all__ = [
    "Augmentation",
    "Batch",
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
    "Unreadable",
    "UnreadableCounter",
    "UnreadableImage",
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
