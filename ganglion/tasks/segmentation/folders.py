"""Where images and their masks lie."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...data import DataError
from ...data.mask_classes import read_mask_classes
from ...data.masks import MaskSource

#: Folders of images below the root, and of their masks: of most data, of Cityscapes, of CamVid as it is published.
_LAYOUTS = (
    ("images/{}", ("annotations/{}", "masks/{}", "labels/{}")),
    ("leftImg8bit/{}", ("gtFine/{}",)),
    ("{}", ("{}annot", "{}_labels")),
)
#: What the validation images are called; last, data without splits.
_VALIDATION = ("val", "validation", "")
_CLASS_FILES = ("classes.txt", "labels.txt", "label_colors.txt", "classes.json", "manifest.json")


def open_masks(
    root: str,
    split: str | None,
    *,
    images: str | None = None,
    masks: str | None = None,
    class_file: str | None = None,
    class_names: Sequence[str] | None = None,
    **options: Any,
) -> MaskSource:
    """root/images/SPLIT and root/annotations/SPLIT (or masks, labels; or as Cityscapes and CamVid have them), where
    folders are not named; of the split None those for validation, or root/images itself where there are no splits.

    The classes are those of `class_file`, below root or not; else those of root/classes.txt, labels.txt and so on;
    else `class_names`. options: of `MaskSource`.

    Raises DataError where they are not there.
    """
    base = Path(root)
    if not base.is_dir():
        raise DataError(f"there is no folder {root}: expected images and masks")
    found_images, found_masks = _folders(base, split, images, masks)
    file = _class_file(base, class_file)
    colours = None
    if file is not None:
        class_names, colours = read_mask_classes(file)
    elif class_names is None:
        raise DataError(
            f"the classes of {root} are unknown: expected {base / _CLASS_FILES[0]}, a name a line, or data.class_file"
        )
    return MaskSource(found_images, found_masks, class_names=class_names, colours=colours, **options)


def _folders(base: Path, split: str | None, images: str | None, masks: str | None) -> tuple[Path, Path]:
    candidates = [
        (base / (images or left.format(name)), [base / (masks or right.format(name)) for right in rights])
        for name in (_VALIDATION if split is None else (split,))
        for left, rights in _LAYOUTS
        if name or left.startswith("images")
    ]
    there = [(left, rights) for left, rights in candidates if left.is_dir()]
    for left, rights in there:
        if (right := next((path for path in rights if path.is_dir()), None)) is not None:
            return left, right
    if there:
        left, rights = there[0]
        raise DataError(f"there is no folder {rights[0]}: expected the masks of {left}")
    names = sorted(p.name for p in base.iterdir() if p.is_dir())[:8]
    raise DataError(
        f"there is no folder {candidates[0][0]}: expected images; in {base} are {', '.join(names) or 'no folders'}"
    )


def _class_file(base: Path, given: str | None) -> Path | None:
    if given is None:
        return next((path for name in _CLASS_FILES if (path := base / name).is_file()), None)
    return next((path for path in (base / given, Path(given)) if path.is_file()), base / given)
