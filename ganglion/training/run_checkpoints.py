"""Training checkpoints: written whole or not at all, sealed, verified when read, the newest good one found.

A run's folder holds `checkpoints/step-00001234.ckpt` and `checkpoints/best.ckpt`. The folder is the only record of what
there is. Files are read with torch's `weights_only` unpickler.
"""

from __future__ import annotations

import os
import re
import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from ..files import find_damage, is_sealed, replacing, seal
from ..models import CheckpointError
from .trainer import has_counters

_NAME = re.compile(r"step-(\d+)\.ckpt")

#: What a run resumes from. Lightning passes over some of it without a word when it is missing.
_ENTRIES: dict[str, Callable[[Any], bool]] = {
    "ganglion": lambda value: isinstance(value, Mapping),
    "state_dict": lambda value: _are_tensors(value),
    "current_model_state": lambda value: value is None or _are_tensors(value),
    "optimizer_states": lambda value: isinstance(value, list) and all(isinstance(v, dict) for v in value),
    "loops": has_counters,
    "callbacks": lambda value: isinstance(value, dict),
    "global_step": lambda value: isinstance(value, int) and value >= 0,
    "epoch_losses": lambda value: _holds(value, {"sum": float, "count": float}),
}

#: Likewise, of runs that did not begin before these were written.
_LATER: dict[str, Callable[[Any], bool]] = {
    "measured": lambda value: isinstance(value, dict) and all(isinstance(v, float) for v in value.values()),
    "length": lambda value: _holds(value, {"steps": int, "images": int}),
    "batch": lambda value: _holds(value, {"step": int, "batch": int}),
}


class ForeignCheckpointError(CheckpointError):
    """A checkpoint that no run of ours wrote."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes whole files, flushed to the disk before they take their names; reads after checking every byte.

    content: of the checkpoint `path`, if it has been read already: given out once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.content: dict[str, Any] | None = None
        self.path: Path | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        target = Path(path)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with replacing(target, durable=True) as temporary:
                with open(temporary, "wb") as file:  # not by its name: errors would lose the system's reason
                    torch.save(checkpoint, file)
                seal(temporary)
        except (OSError, RuntimeError) as error:
            raise CheckpointError(
                f"cannot write the checkpoint {target}: {_reason(error)}. Earlier checkpoints are intact: "
                + (", ".join(p.name for p in list_checkpoints(target.parent)) or "there are none")
            ) from error

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        content, self.content = self.content, None
        return content if content is not None and Path(path) == self.path else read_checkpoint(Path(path))


def _reason(error: BaseException) -> str:
    """The system's words for what went wrong, which torch's writer may have wrapped."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__cause__ or cause.__context__
    return str(error).partition("\n")[0]


def verify(path: Path) -> None:
    """Raise CheckpointError unless the file is there and every byte of it as it was written.

    Raises PermissionError if it may not be read.
    """
    try:
        damage = find_damage(path)
    except FileNotFoundError as error:
        raise CheckpointError(f"there is no checkpoint {path}") from error
    except PermissionError:
        raise
    except OSError as error:
        damage = _reason(error)
    if damage is not None:
        raise CheckpointError(f"the checkpoint {path} is truncated or damaged: {damage}")


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The content of a training checkpoint, tensors on the CPU, after checking every byte and the types in it.

    Raises CheckpointError for a file that is missing, damaged or incomplete; ForeignCheckpointError for one that is
    whole and no run of ours wrote; PermissionError.
    """
    verify(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # whatever the reader raises over a damaged file
        raise CheckpointError(
            f"the checkpoint {path} is damaged: {str(error).partition(chr(10))[0]}"
        ) from error
    if not isinstance(content, dict) or "ganglion" not in content:
        raise ForeignCheckpointError(f"{path} is no checkpoint of `ganglion fit`")
    wrong = [name for name, holds in _ENTRIES.items() if not holds(content.get(name))]
    if not _LATER.keys().isdisjoint(content):  # all or none of them
        wrong += [name for name, holds in _LATER.items() if not holds(content.get(name))]
    if wrong:
        raise CheckpointError(
            f"the checkpoint {path} is incomplete: what it holds as {', '.join(wrong)} is of the wrong type"
        )
    return content


def _holds(value: Any, types: Mapping[str, type]) -> bool:
    return isinstance(value, dict) and all(isinstance(value.get(name), kind) for name, kind in types.items())


def _are_tensors(value: Any) -> bool:
    return isinstance(value, Mapping) and all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in value.items()
    )


def checkpoint_path(folder: Path, step: int) -> Path:
    return folder / f"step-{step:08d}.ckpt"


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a run by step, newest first."""
    found = [path for path in folder.glob("step-*.ckpt") if _NAME.fullmatch(path.name)]
    return sorted(found, key=_step, reverse=True)


def _step(path: Path) -> int:
    return int(path.stem.removeprefix("step-"))


def newest_good(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint that can be used, and its content; each newer one that cannot is announced.

    None if there is none at all. Raises CheckpointError if there are some and none can be used; ForeignCheckpointError.
    """
    paths = list_checkpoints(folder)
    for path in paths:
        try:
            return path, read_checkpoint(path)
        except ForeignCheckpointError:
            raise
        except CheckpointError as error:
            warnings.warn(f"ganglion: {error}; trying the one before", RuntimeWarning, stacklevel=2)
    if paths:
        raise CheckpointError(f"none of the checkpoints in {folder} can be read")
    return None


def remove_old(folder: Path, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints, of those that are sealed, that is, ours and whole.

    A damaged one does not count and stays: it may be all that is left of something.
    """
    ours = [path for path in list_checkpoints(folder) if is_sealed(path)]
    for path in ours[keep:]:
        path.unlink(missing_ok=True)


def replace_with_link(source: Path, target: Path) -> None:
    """Make `target` the same file as `source`, atomically and, where the file system can, without a second copy."""
    with replacing(target) as temporary:
        temporary.unlink()
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)
