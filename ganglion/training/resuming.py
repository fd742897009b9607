"""What may differ between a run and its continuation: how long it is, and how many devices share a batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .errors import TrainingError
from .trainer import saved_batches


def changed_length(before: Mapping[str, int], now: Mapping[str, int]) -> list[str]:
    """What to say of a run that has other numbers of "steps" or "images" than so far."""
    notes = []
    if now["images"] != before["images"]:
        notes.append(
            f"the training data have {now['images']} images, and had {before['images']} in this run so far"
        )
    if now["steps"] != before["steps"]:
        notes.append(
            f"the run has {now['steps']} steps, and had {before['steps']} so far: its schedule resumes as that of a "
            f"run of {now['steps']}"
        )
    return notes


def change_batches(
    checkpoint: dict[str, Any], now: Mapping[str, int], images: int, world_size: int, accumulated: int
) -> None:
    """Count the position in the epoch, as the checkpoint has it, in batches of this command's size.

    now: images of a "step" of the optimizer and of a "batch", over all devices. images: of the epoch.

    Raises TrainingError if as many images to an optimizer step as before are not possible.
    """
    before = checkpoint["batch"]
    if now["step"] != before["step"]:
        raise TrainingError(
            f"the run takes {before['step']} images to an optimizer step; data.batch_size "
            f"{now['batch'] // world_size} on {world_size} devices, with trainer.accumulate_grad_batches "
            f"{accumulated}, makes {now['step']}. Expected data.batch_size "
            f"{before['step'] / world_size / accumulated:g}"
        )
    if now["batch"] == before["batch"]:
        return
    progress = saved_batches(checkpoint)
    for counts in (progress["current"], progress["total"]):
        done = counts["ready"]
        moved = done * before["batch"] // now["batch"] - done
        counts.update({name: count + moved for name, count in counts.items()})
    if not progress["is_last_batch"] and progress["current"]["ready"] >= images // now["batch"]:
        raise TrainingError(
            f"batches of {now['batch']} images leave nothing of this epoch, whose rest is smaller: resume with "
            f"batches of {before['batch']} to its end first"
        )
