"""What networks are trained for: a folder for each task; how any of them is fitted, measured and loaded.

A task is a folder with three files:

    training.py     TASK and DATA, subclasses of `training.task.Task` and `training.data.TaskData`
    metrics.py      MONITOR, what decides which checkpoint is the best, and labelled(model, request) -> Labelled
    prediction.py   build(description) -> network, predictions(model, images, *, batch_size, ...),
                    draw(image, entry) -> image, HEADER, lines(entry) -> list of text; of detection and segmentation
                    results(entry) -> COCO's results

Only the first needs Lightning. A folder of somebody else's is a task, too, where the user names it.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from ..errors import unknown

#: What can be trained: folders here.
TASKS = ("classification", "detection", "segmentation")

#: What files say nothing of was made for.
DEFAULT = "classification"

FILES = ("training.py", "metrics.py", "prediction.py")


@dataclass(frozen=True)
class TaskFolder:
    """A task. package: its folder's name as Python imports it. Its files are imported when they are asked for."""

    package: str

    @property
    def name(self) -> str:
        return self.package.rpartition(".")[2]

    @property
    def training(self) -> ModuleType:
        return importlib.import_module(f"{self.package}.training")

    @property
    def metrics(self) -> ModuleType:
        return importlib.import_module(f"{self.package}.metrics")

    @property
    def prediction(self) -> ModuleType:
        return importlib.import_module(f"{self.package}.prediction")


def find_task(task: str | os.PathLike[str]) -> TaskFolder:
    """A task by its name, or by its folder, whose code then runs: it must be named by the user, never by a file.

    Raises ValueError where there is none.
    """
    if (name := os.fspath(task)) in TASKS:
        return TaskFolder(f"{__name__}.{name}")
    folder = Path(name).resolve()
    if not folder.is_dir():
        raise ValueError(unknown("task", name, TASKS) + " A task of your own is named by its folder.")
    if missing := [file for file in FILES if not (folder / file).is_file()]:
        raise ValueError(f"the task {name} has no {' and no '.join(missing)}: expected {', '.join(FILES)}")
    if not folder.name.isidentifier():
        raise ValueError(f"the task {name}: expected a folder with a name of letters, digits and _")
    # Loader processes import it, too, and are given this path. At its end: nothing beside the folder hides a package.
    if (parent := str(folder.parent)) not in sys.path:
        sys.path.append(parent)
    importlib.invalidate_caches()
    found = importlib.util.find_spec(folder.name)
    folders = list(found.submodule_search_locations or ()) if found is not None else []
    if [Path(f).resolve() for f in folders] != [folder]:
        raise ValueError(
            f"the task {name} has the name of another package: expected another name of the folder"
        )
    return TaskFolder(folder.name)
