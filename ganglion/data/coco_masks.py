"""Masks in COCO's JSON, looked at before a library that trusts its input is given them: polygons and run lengths."""

from __future__ import annotations

import math
from typing import Any

from ..errors import shown

#: Farther out a corner is no mistake of a few pixels.
_FARTHEST = 1e6
_EXPECTED = "expected polygons [[x, y, x, y, ...], ...] or run lengths {size, counts}"


def checked_mask(segmentation: Any, height: int, width: int) -> tuple[Any, str]:
    """(the mask or None, "") for one that can be used, without polygons of fewer than three corners; None where nothing
    is left. (None, what is wrong) else. Compressed run lengths are left to `wrong_counts`."""
    if segmentation is None or segmentation == []:
        return None, ""
    if isinstance(segmentation, dict):
        wrong = _wrong_runs(segmentation, height, width)
        return (None, wrong) if wrong else (segmentation, "")
    if not isinstance(segmentation, list) or not all(isinstance(p, list) for p in segmentation):
        return None, f"segmentation is {_short(segmentation)}: {_EXPECTED}"
    kept = []
    for polygon in segmentation:
        try:
            total = math.fsum(polygon)
            far = max(map(abs, polygon), default=0)
        except (TypeError, ValueError, OverflowError):
            return None, f"segmentation has the polygon {_short(polygon)}: expected numbers x, y, x, y, ..."
        if not math.isfinite(total) or far > _FARTHEST:
            return (
                None,
                f"segmentation has the polygon {_short(polygon)}: expected finite numbers within the image",
            )
        if len(polygon) % 2:
            return None, f"segmentation has a polygon of {len(polygon)} numbers: expected pairs of x and y"
        if len(polygon) >= 6:
            kept.append(polygon)
    return kept or None, ""


def _wrong_runs(mask: dict[str, Any], height: int, width: int) -> str:
    if not {"size", "counts"} <= mask.keys() or not isinstance(mask["counts"], (list, str, bytes)):
        return f"segmentation is {_short(mask)}: {_EXPECTED}"
    if list(mask["size"]) != [height, width]:
        return f"the mask's size is {mask['size']}: expected that of its image, [{height}, {width}]"
    if not isinstance(mask["counts"], list):
        return ""
    if not all(isinstance(n, int) and n >= 0 for n in mask["counts"]):
        return f"the mask's counts are {_short(mask['counts'])}: expected whole numbers of at least 0"
    return _wrong_sum(sum(mask["counts"]), height, width)


def _wrong_sum(found: int, height: int, width: int) -> str:
    if found == height * width:
        return ""
    return f"the mask's run lengths are of {found} pixels: expected {height * width}, {height} x {width}"


def wrong_counts(segmentation: Any, height: int, width: int) -> str:
    """What is wrong with compressed run lengths; "" for nothing, and for masks of other kinds."""
    if not isinstance(segmentation, dict) or isinstance(segmentation["counts"], list):
        return ""
    counts = segmentation["counts"]
    text = counts.decode("latin-1") if isinstance(counts, bytes) else counts
    runs: list[int] = []
    value = shift = 0
    for letter in text:
        code = ord(letter) - 48
        if not 0 <= code < 64:
            return f"the mask's counts are {_short(text)}: no compressed run lengths"
        value |= (code & 31) << shift
        shift += 5
        if code & 32:  # more of it follows
            continue
        if code & 16:
            value -= 1 << shift
        # From the fourth on a run is the difference to that before the last.
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    if shift or min(runs, default=0) < 0:
        return f"the mask's counts are {_short(text)}: no compressed run lengths"
    return _wrong_sum(sum(runs), height, width)


def _short(value: Any) -> str:
    text = shown(str(value))
    return text if len(text) <= 60 else text[:57] + "..."
