"""Exported networks of the dense tasks, tiny and untrained."""

from __future__ import annotations

from ganglion.tasks import find_task
from ganglion.training.exported_folder import export as export_folder
from tests.cli.networks import NAMES

IMAGES = {"input_size": (3, 64, 64), "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.25, 0.3)}

DENSE = {
    "segmentation": {"model": "semantic_fpn", "measured": {"val/miou": 41.25}},
    "detection": {"model": "mask_rcnn", "measured": {"val/bbox_ap": 21.5, "val/segm_ap": 20.0}},
}


def dense(folder, task: str):
    """A segmentor or detector as a run exports it, and its network."""
    made_of = {
        "task": task,
        "model": DENSE[task]["model"],
        "backbone": "test_vmamba",
        "backbone_args": {"in_chans": 3},
        "config": {},
        "num_classes": 3,
        "data_config": IMAGES | ({"category_ids": [1, 2, 3]} if task == "detection" else {}),
        "class_names": NAMES,
    }
    made = find_task(task).prediction.build(made_of)
    export_folder(made, folder, made_of, {"measured": DENSE[task]["measured"]})
    return made
