"""What a file says of the network whose weights it holds, checked field by field.

An exported folder says it in timm's config.json, a training checkpoint in its entry `ganglion`. Either may come from
elsewhere, or have been edited by hand: nothing in it is used before it was looked at.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import timm

from ..errors import unknown
from ..models import CheckpointError
from ..models.weight_files import check_regular
from . import DEFAULT

#: Pixels of a side, above which an input size is taken for a mistake.
_MAX_SIDE = 32768

_Check = tuple[Callable[[Any], bool], str]


def _is_whole(value: Any, low: int, high: float = math.inf) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _is_number(value: Any, low: float = -math.inf, high: float = math.inf) -> bool:
    """A finite number, above `low` and up to `high`."""
    return (
        isinstance(value, (int, float))
        and not isinstance(value, bool)
        and math.isfinite(value)
        and low < value <= high
    )


def _is_size(value: Any) -> bool:
    return _is_list(value, lambda n: _is_whole(n, 1, _MAX_SIDE)) and len(value) == 3


def _is_list(value: Any, check: Callable[[Any], bool]) -> bool:
    return isinstance(value, (list, tuple)) and len(value) > 0 and all(map(check, value))


def _is_label(value: Any) -> bool:
    return isinstance(value, str) or _is_whole(value, 0)


def _are_labels(value: Any) -> bool:
    entries = value.values() if isinstance(value, Mapping) else value
    return isinstance(value, (list, tuple, Mapping)) and all(map(_is_label, entries))


def _one_of(*names: str) -> _Check:
    return lambda value: isinstance(value, str) and value in names, f"one of {', '.join(names)}"


_MAPPING: _Check = (lambda value: isinstance(value, Mapping), "a mapping from names to values")
_CLASSES: _Check = (lambda value: _is_whole(value, 0), "a whole number of at least 0")
_CHANNELS: _Check = (lambda value: _is_whole(value, 1), "a whole number of at least 1")
_LABELS: _Check = (_are_labels, "a list of names, or a mapping to them")

#: What images have to be like, in timm's words. None stands for timm's default.
_IMAGES: dict[str, _Check] = {
    "input_size": (_is_size, f"three whole numbers from 1 to {_MAX_SIDE}: channels, height, width"),
    "mean": (lambda value: _is_list(value, _is_number), "a list of numbers"),
    "std": (lambda value: _is_list(value, lambda x: _is_number(x, 0)), "a list of numbers above 0"),
    "crop_pct": (lambda value: _is_number(value, 0, 1), "a number above 0 and up to 1"),
    "interpolation": _one_of("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos"),
    "crop_mode": _one_of("center", "squash", "border"),
}

_CONFIG: dict[str, _Check] = {
    "num_classes": _CLASSES,
    "label_names": _LABELS,
    "label_descriptions": (
        lambda value: isinstance(value, Mapping) and all(isinstance(text, str) for text in value.values()),
        "a mapping from names to words",
    ),
    "model_args": _MAPPING,
    "pretrained_cfg": _MAPPING,
}

_TRAINING: dict[str, _Check] = {
    "model": (lambda value: isinstance(value, str), "the name of a network"),
    "model_args": _MAPPING,
    "num_classes": (lambda value: _is_whole(value, 1), "a whole number of at least 1"),
    "data_config": _MAPPING,
    "class_names": _LABELS,
}


def read_config(folder: Path) -> dict[str, Any]:
    """The content of `config.json` in an exported folder.

    Raises CheckpointError, naming file and field, for what is no JSON or not of timm's types; OSError where the file
    cannot be read.
    """
    path = folder / "config.json"
    check_regular(path)
    try:
        config = json.loads(path.read_bytes().decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{str(path)!r} is no JSON: {error}") from error
    if not isinstance(config, Mapping):
        raise CheckpointError(f"{str(path)!r} holds a {type(config).__name__}: expected a mapping")
    where = repr(str(path))
    if config.get("task") is not None and not isinstance(config["task"], str):
        raise CheckpointError(f"{where}: task is {config['task']!r}: expected the name of a task")
    if config.get("task") not in (None, DEFAULT):  # which has a format of its own
        return dict(config)
    if "architecture" not in config:
        raise CheckpointError(f"{where} has no `architecture`: expected the name of a network")
    check_name(config["architecture"], f"{where}: architecture")
    _check(config, _CONFIG, where)
    cfg, arguments = config.get("pretrained_cfg"), config.get("model_args")
    _check(config if cfg is None else cfg, _IMAGES, where + ("" if cfg is None else ": pretrained_cfg"))
    for name, part in (("pretrained_cfg", cfg), ("model_args", arguments)):
        _check(part or {}, {"num_classes": _CLASSES, "in_chans": _CHANNELS}, f"{where}: {name}")
    return dict(config)


def check_training(made_of: Any, where: str, task: str = DEFAULT) -> None:
    """Raise CheckpointError, naming the field, unless a training checkpoint's `ganglion` says all that is needed.

    Of another task than classification only what images have to be like; the rest is for the task to check."""
    if not isinstance(made_of, Mapping):
        raise CheckpointError(f"{where}: ganglion is {made_of!r}: expected a mapping")
    if task != DEFAULT:
        images = made_of.get("data_config")
        if not isinstance(images, Mapping) or "input_size" not in images:
            raise CheckpointError(
                f"{where}: ganglion.data_config is {images!r}: expected one with an input_size"
            )
        _check(images, _IMAGES, f"{where}: ganglion.data_config")
        return
    if missing := [name for name in _TRAINING if name not in made_of]:
        raise CheckpointError(f"{where}: ganglion has no {' and no '.join(missing)}")
    where += ": ganglion"
    required = {name: made_of[name] for name in ("model", "model_args", "num_classes", "data_config")}
    if empty := [name for name, value in required.items() if value is None]:
        raise CheckpointError(f"{where}.{empty[0]} is null: expected {_TRAINING[empty[0]][1]}")
    _check(made_of, _TRAINING, where)
    _check(made_of["data_config"], _IMAGES, f"{where}.data_config")
    _check(made_of["model_args"], {"in_chans": _CHANNELS}, f"{where}.model_args")
    check_name(made_of["model"], f"{where}.model")


def read_history(value: Any) -> dict[str, Any]:
    """What is known of how a network was trained: "measured" (values by name), "recipe" (settings by name), "epochs",
    "steps", "images". It decides nothing, so that what is of no such type is left out."""
    if not isinstance(value, Mapping):
        return {}
    history: dict[str, Any] = {
        name: value[name] for name in ("epochs", "steps", "images") if _is_whole(value.get(name), 0)
    }
    for name, check in (("measured", _is_number), ("recipe", lambda _: True)):
        entries = value.get(name)
        if isinstance(entries, Mapping):
            history[name] = {str(key): entry for key, entry in entries.items() if check(entry)}
    return history


def check_name(name: Any, where: str) -> None:
    """Raise CheckpointError unless `name` is a network's in timm's registry."""
    if not isinstance(name, str):
        raise CheckpointError(f"{where} is {name!r}: expected the name of a network")
    if not is_model(name):
        raise CheckpointError(f"{where}: {unknown('model', name, timm.list_models())}")


def is_model(name: str) -> bool:
    """Whether timm has a network of this name, which may end in a tag."""
    return not any(c in name for c in "/\\:") and timm.is_model(name)


def _check(config: Mapping[str, Any], fields: Mapping[str, _Check], where: str) -> None:
    for name, (check, expected) in fields.items():
        value = config.get(name)
        if value is not None and not check(value):
            shown = repr(value)
            raise CheckpointError(
                f"{where}: {name} is {shown[:60] + ' ...' if len(shown) > 64 else shown}: expected {expected}"
            )
