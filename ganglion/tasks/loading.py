"""A trained network from whatever its weights are in, with what it expects of an image and its classes' names."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
from timm.data import ImageNetInfo, infer_imagenet_subset, resolve_model_data_config
from torch import nn

from ..errors import unknown
from ..models import Backbone, CheckpointError, load_checkpoint, read_weights
from ..models.weight_files import check_regular

#: How a network is called in the training checkpoints of this library.
_PREFIX = "network."

_SUFFIXES = (".ckpt", ".pth", ".safetensors")


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A network ready for inference.

    name: its name in timm's registry. network: in eval mode, float32, on the CPU.
    data_config: timm's description of its input: input_size (channels, height, width), mean, std, crop_pct, ...
    class_names: the label of every class, in the order of the logits (ImageNet's are WordNet's, such as "n01440764");
        None if nobody knows them.
    description: what was read from where, for people.
    """

    name: str
    network: nn.Module
    data_config: dict[str, Any]
    class_names: list[str] | None
    description: str

    @property
    def num_classes(self) -> int:
        return self.network.num_classes  # pyright: ignore

    def readable_names(self) -> list[str]:
        """A name for every class that people understand: its words for ImageNet's labels, else the label or index."""
        labels = self.class_names or [str(i) for i in range(self.num_classes)]
        words = self.network.pretrained_cfg.get("label_descriptions") or {}  # pyright: ignore
        if not words and all(label[:1] == "n" and label[1:].isdecimal() for label in labels):
            info = ImageNetInfo("imagenet-22k")
            words = dict(zip(info.label_names(), info.label_descriptions(), strict=True))
        return [words.get(label, label) for label in labels]


def load_model(model: str | None, checkpoint: str | os.PathLike[str] | None = None) -> LoadedModel:
    """Build a network and load its weights.

    model: its name in timm's registry; None if the checkpoint says it.
    checkpoint: one of
        - a folder with config.json and model.safetensors in timm's format, as `ganglion fit` exports it, or that
          model.safetensors;
        - a training checkpoint of `ganglion fit` (averaged weights, if it averages them);
        - a file or https URL that `load_checkpoint` reads, for a network of this library;
        - None for the published weights that timm knows of, from its cache or downloaded.

    Classifiers of any number of classes are taken as the file has them.

    Raises OSError for a file that is not there or may not be read; CheckpointError for one that is damaged or does not
    fit, or where there are no weights; ValueError for a name that is unknown, missing, or not that of the checkpoint.
    """
    if model is not None and not timm.is_model(model):
        known = (name for module in ("vmamba", "sparx") for name in timm.list_models(module=module))
        raise ValueError(unknown("model", model, known))
    if checkpoint is None:
        if model is None:
            raise ValueError("expected the name of a model, a checkpoint that says it, or both")
        loaded = _published(model)
    elif (folder := _exported(checkpoint)) is not None:
        loaded = _from_folder(folder)
    else:
        loaded = _from_file(model, os.fspath(checkpoint))
    if model is not None and model.partition(".")[0] != loaded.name:
        raise ValueError(
            f"the model is said to be {model!r}, but {os.fspath(checkpoint or '')!r} holds {loaded.name!r}: "
            "leave the name out, or pass another checkpoint"
        )
    return loaded


def _loaded(
    network: nn.Module,
    source: str,
    *,
    data_config: Mapping[str, Any] | None = None,
    class_names: list[str] | None = None,
) -> LoadedModel:
    cfg: Any = network.pretrained_cfg
    classes: int = network.num_classes  # pyright: ignore
    if class_names is None:
        class_names = _labels(cfg.get("label_names"), classes)
    if class_names is None and (subset := infer_imagenet_subset(network)):
        class_names = list(ImageNetInfo(subset).label_names())
    if class_names is not None:
        if len(class_names) > classes:
            raise CheckpointError(f"{source} names {len(class_names)} classes, the network has {classes}")
        class_names = [*class_names, *map(str, range(len(class_names), classes))]
    name = cfg["architecture"]
    return LoadedModel(
        name=name,
        network=network.eval(),
        data_config=resolve_model_data_config(network, pretrained_cfg=data_config),
        class_names=class_names,
        description=f"{name}, {classes} classes, from {source}",
    )


def _labels(names: Any, classes: int) -> list[str] | None:
    """timm stores a list, or a dictionary from the index where some classes have no name."""
    if not names:
        return None
    if isinstance(names, Mapping):
        return [str(names.get(i, names.get(str(i), i))) for i in range(classes)]
    return [str(name) for name in names]


def _published(model: str) -> LoadedModel:
    try:
        cfg = timm.get_pretrained_cfg(model)
        known = cfg is not None and cfg.has_weights
        network = timm.create_model(model, pretrained=True) if known else None
    except Exception as error:  # files, JSON, names, arguments go wrong in their own ways
        raise CheckpointError(
            f"cannot load the published weights of {model} ({_first_line(error)}): expected a checkpoint"
        ) from error
    if network is None:
        raise CheckpointError(f"no published weights of {model} are known: expected a checkpoint")
    return _loaded(network, "its published weights")


def _exported(checkpoint: str | os.PathLike[str]) -> Path | None:
    """The folder that `checkpoint` is, or whose weights it is."""
    path = Path(checkpoint)
    if path.is_dir():
        if (path / "config.json").is_file():
            return path
        folders = sorted(p.parent for p in path.glob("*/config.json"))
        files = sorted(p for p in (*path.glob("*"), *path.glob("checkpoints/*")) if p.suffix in _SUFFIXES)
        hint = f". In it are {', '.join(map(str, (folders + files)[:8]))}" if folders or files else ""
        raise CheckpointError(
            f"the folder {str(path)!r} has no config.json: expected one with config.json and model.safetensors, or a "
            f"file{hint}"
        )
    if path.name == "model.safetensors" and path.is_file() and (path.parent / "config.json").is_file():
        return path.parent
    return None


def _from_folder(folder: Path) -> LoadedModel:
    for file in folder.glob("*"):
        if file.name in ("config.json", "model.safetensors", "pytorch_model.bin"):
            check_regular(file)
    try:
        return _loaded(timm.create_model(f"local-dir:{folder}", pretrained=True), str(folder))
    except Exception as error:  # files, JSON, names, arguments go wrong in their own ways
        raise CheckpointError(
            f"cannot load the exported network in {str(folder)!r}: {_first_line(error)}"
        ) from error


def _from_file(model: str | None, source: str) -> LoadedModel:
    content = read_weights(source)
    if isinstance(content, Mapping) and "ganglion" in content:
        return _from_training(content, source)
    if model is None:
        raise ValueError(f"{source!r} does not say which network it holds: expected the name of a model")
    network = timm.create_model(model)
    if not isinstance(network, Backbone):
        raise CheckpointError(
            f"{source!r} does not say how {model} was built, which is not of this library: expected a folder or "
            "training checkpoint of `ganglion fit`"
        )
    try:
        try:
            load_checkpoint(network, content)
        except CheckpointError as error:
            if error.report is None or error.report.other_classes is None:
                raise
            network.reset_classifier(error.report.other_classes)
            load_checkpoint(network, content)
    except ValueError as error:
        raise CheckpointError(f"cannot load {source!r} into {model}: {error}") from error
    return _loaded(network, source)


def _from_training(content: Mapping[str, Any], source: str) -> LoadedModel:
    made_of = content["ganglion"]
    try:
        arguments = {"num_classes": made_of["num_classes"], **made_of["model_args"]}
        network = timm.create_model(made_of["model"], **arguments)
        network.load_state_dict(
            {
                name.removeprefix(_PREFIX): tensor
                for name, tensor in content["state_dict"].items()
                if name.startswith(_PREFIX)
            }
        )
        return _loaded(
            network,
            source + (" (averaged weights)" if "current_model_state" in content else ""),
            data_config=made_of["data_config"],
            class_names=made_of["class_names"],
        )
    except Exception as error:  # a damaged description can go wrong anywhere
        raise CheckpointError(
            f"the training checkpoint {source!r} cannot be rebuilt: {type(error).__name__}: {error}"
        ) from error


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
