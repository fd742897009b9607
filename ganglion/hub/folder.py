"""A network as the folder that `ganglion fit` leaves: model.safetensors and config.json, which timm reads."""

from __future__ import annotations

import os
from pathlib import Path

from ..tasks.loaded_model import LoadedModel
from .card import CardError, write_card

CARD = "README.md"


def write_folder(model: LoadedModel, folder: str | os.PathLike[str]) -> str | None:
    """Write a network to a folder, with its card, README.md, where its accuracy is known.

    `ganglion.load_model(folder)` loads it, and of classifiers `timm.create_model("local-dir:FOLDER")`, too.

    Returns why there is no card, None where there is one.

    Raises TrainingError where the folder cannot be written or holds what was not written so, or a weight is not finite.
    """
    write_network(model, Path(folder))
    try:
        write_card(model, Path(folder) / CARD)
    except CardError as error:
        return str(error)
    return None


def write_network(model: LoadedModel, folder: Path) -> None:
    """`write_folder` without the card."""
    from ..training.exported_folder import export

    said = {"class_names": model.class_names, "data_config": model.data_config} | dict(model.made_of)
    export(model.network, folder, said | {"task": model.task.name}, model.training)
