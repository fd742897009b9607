"""The trained network as a folder that `ganglion predict` and `timm.create_model("local-dir:FOLDER")` read."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from safetensors import SafetensorError
from timm.models._hub import save_config_for_hf
from torch import nn

from ..files import replacing
from .errors import TrainingError

WEIGHTS, CONFIG = "model.safetensors", "config.json"

#: Stands in both files, and says that an export may replace them. One entry: safetensors writes several in any order,
#: and the same network makes the same file.
_MARK = {"written_by": "ganglion fit"}


def export(
    network: nn.Module,
    folder: Path,
    description: Mapping[str, Any],
    training: Mapping[str, Any] | None = None,
) -> None:
    """Write `model.safetensors` and `config.json` (task, network, its arguments, classes, preprocessing) to `folder`.

    description: what a training checkpoint says of the network. Of classification the two are in timm's format.
    training: what is known of how it was trained, in plain types; kept as `training` in config.json.

    Each replaces an older one when it is complete; whatever else is there stays.

    Raises TrainingError if they cannot be written, if an older one is not ours, or if a weight is not finite.
    """
    weights = {name: value.contiguous() for name, value in network.state_dict().items()}
    bad = [name for name, value in weights.items() if not torch.isfinite(value).all()]
    if bad:
        raise TrainingError(
            f"not exported: {bad[0]} has values that are not finite ({len(bad)} tensors have)"
        )
    if os.path.lexists(folder) and not is_export(folder):
        raise TrainingError(f"not exported: {folder} holds a network that no run of ours wrote")
    task = description.get("task", "classification")
    config: dict[str, Any] = _MARK | {"task": task} | ({"training": dict(training)} if training else {})
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / WEIGHTS, durable=True) as temporary:
            safetensors.torch.save_file(weights, temporary, metadata=_MARK)
        with replacing(folder / CONFIG, durable=True) as temporary:
            if task == "classification":
                if names := description["class_names"]:
                    config["label_names"] = names
                save_config_for_hf(network, str(temporary), config, data_config=description["data_config"])
            else:
                config["ganglion"] = dict(description)
                temporary.write_text(json.dumps(config, indent=2))
    except (OSError, SafetensorError) as error:
        raise TrainingError(f"cannot write {folder}: {getattr(error, 'strerror', None) or error}") from error


def is_export(folder: Path) -> bool:
    """Whether `export` may write to a folder: its two files there, if they are, were written by it."""
    if not folder.is_dir():
        return False
    weights, config = folder / WEIGHTS, folder / CONFIG
    try:
        if os.path.lexists(config) and not _MARK.items() <= json.loads(config.read_bytes()).items():
            return False
        if os.path.lexists(weights):
            with safetensors.safe_open(weights, "pt") as file:
                return _MARK.items() <= (file.metadata() or {}).items()
    except (OSError, ValueError, AttributeError, SafetensorError):
        return False
    return True
