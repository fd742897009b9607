"""The trained network as a folder that `ganglion predict` and `timm.create_model("local-dir:FOLDER")` read."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from timm.models import save_for_hf
from torch import nn

from .task import TrainingError


def export(
    network: nn.Module, folder: Path, *, data_config: dict[str, Any], class_names: list[str] | None
) -> None:
    """Write `model.safetensors` and `config.json` (network, its arguments, classes, preprocessing) to `folder`.

    A folder that is there already is replaced when the new one is complete.

    Raises TrainingError if it cannot be written, or if a weight is not finite.
    """
    bad = [name for name, value in network.state_dict().items() if not torch.isfinite(value).all()]
    if bad:
        raise TrainingError(
            f"not exported: {bad[0]} has values that are not finite ({len(bad)} tensors have)"
        )
    config = {"label_names": class_names} if class_names else {}
    network.to(memory_format=torch.contiguous_format)  # pyright: ignore  safetensors holds no other
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        save_for_hf(network, str(temporary), config, safe_serialization=True, data_config=data_config)
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(temporary, folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise TrainingError(f"cannot write {folder}: {getattr(error, 'strerror', None) or error}") from error
