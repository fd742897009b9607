"""Masks as COCO writes them: polygons and run lengths. Of the extra `detection`, imported when it is needed."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from ...data import DataError


def need(module: str) -> Any:
    """A module of faster-coco-eval. Raises ImportError, saying what to install."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError("detection needs faster-coco-eval: pip install ganglion[detection]") from error


def encoded(segmentation: Any, height: int, width: int) -> dict[str, Any]:
    """Polygons, or run lengths of either kind, as compressed run lengths: {"size", "counts"}, counts bytes.

    Raises DataError for what is neither, or of another size.
    """
    mask = need("faster_coco_eval.core.mask")
    try:
        if isinstance(segmentation, dict):
            if list(segmentation["size"]) != [height, width]:
                raise DataError(
                    f"a mask has the size {segmentation['size']}: expected that of its image, [{height}, {width}]"
                )
            if not isinstance(segmentation["counts"], list):
                return segmentation
            return mask.frPyObjects(segmentation, height, width)
        polygons = [polygon for polygon in segmentation if len(polygon) >= 6]
        if not polygons:
            return encode(np.zeros((height, width), np.uint8))
        return mask.merge(mask.frPyObjects(polygons, height, width))
    except DataError:
        raise
    except Exception as error:  # of the library: any type
        raise DataError(f"a mask is {str(segmentation)[:60]}: expected polygons or run lengths") from error


def bitmap(segmentation: Any, height: int, width: int) -> np.ndarray:
    """(height, width) uint8 of 0 and 1."""
    return decode(encoded(segmentation, height, width))


def encode(mask: np.ndarray) -> dict[str, Any]:
    """(height, width) of 0 and 1 -> compressed run lengths."""
    return need("faster_coco_eval.core.mask").encode(np.asfortranarray(mask, dtype=np.uint8))


def decode(rle: dict[str, Any]) -> np.ndarray:
    return np.ascontiguousarray(need("faster_coco_eval.core.mask").decode(rle))


def as_text(rle: dict[str, Any]) -> dict[str, Any]:
    """With counts as text, for JSON."""
    counts = rle["counts"]
    return {
        "size": [int(side) for side in rle["size"]],
        "counts": counts.decode("ascii") if isinstance(counts, bytes) else counts,
    }
