"""A trained network from whatever its weights are in, with what it expects of an image and its classes' names."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import timm
import torch
from safetensors import safe_open
from timm.data import ImageNetInfo, infer_imagenet_subset, resolve_model_data_config
from torch import nn

from ..errors import unknown
from ..models import Backbone, CheckpointError, load_checkpoint, read_weights
from ..models.hub_files import PREFIX as HUB
from ..models.hub_files import hub_folder
from ..models.weight_files import check_regular, offline
from . import DEFAULT, TASKS, TaskFolder, find_task
from .saved_config import check_training, is_model, read_config, read_history

#: How a network is called in the training checkpoints of this library.
_PREFIX = "network."

_SUFFIXES = (".ckpt", ".pth", ".safetensors")


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A network ready for inference.

    name: its name in timm's registry. network: in eval mode, float32, on the CPU.
    data_config: timm's description of its input: input_size (channels, height, width), mean, std, crop_pct, ...
    class_names: the label of every class, in the order of the logits (ImageNet's are WordNet's, such as "n01440764");
        None if unknown.
    description: what was read from where, for people.
    task: what it was trained for.
    made_of: what the source says of it, for the task's `build`; empty for a classifier, which timm describes.
    training: what is known of how it was trained, see `saved_config.read_history`.
    """

    name: str
    network: nn.Module
    data_config: dict[str, Any]
    class_names: list[str] | None
    description: str
    task: TaskFolder
    made_of: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)

    @property
    def num_classes(self) -> int:
        """Of a timm network, or of those that have names."""
        network: Any = self.network
        return getattr(network, "num_classes", len(self.class_names or ()))

    def readable_names(self) -> list[str]:
        """A name for every class that people understand: its words for ImageNet's labels, else the label or index."""
        labels = self.class_names or [str(i) for i in range(self.num_classes)]
        network: Any = self.network
        words = getattr(network, "pretrained_cfg", {}).get("label_descriptions") or {}
        if not words and all(label[:1] == "n" and label[1:].isdecimal() for label in labels):
            info = ImageNetInfo("imagenet-22k")
            words = dict(zip(info.label_names(), info.label_descriptions(), strict=True))
        return [words.get(label, label) for label in labels]


def load_model(
    source: str | os.PathLike[str], *, model: str | None = None, task: str | os.PathLike[str] | None = None
) -> LoadedModel:
    """Build a network and load its weights.

    source: one of
        - a folder with config.json and model.safetensors in timm's format, as `ganglion fit` exports it, or that
          model.safetensors;
        - a training checkpoint of `ganglion fit` (averaged weights, if it averages them);
        - a file or https URL that `load_checkpoint` reads, for a network of this library, which `model` names;
        - `hf-hub:OWNER/NAME`, such a folder at Hugging Face's hub, from its cache or downloaded;
        - the name of a network in timm's registry, for the published weights that timm knows of, from its cache or
          downloaded. A folder of the same name is meant by `./NAME`.
    model: the network's name in timm's registry, where the source does not say it.
    task: folder of the task that the network was trained for, where that is none of this library's. Its code runs.

    Classifiers of any number of classes are taken as the file has them.

    Raises OSError for a file that is not there or may not be read; CheckpointError for one that is damaged or does not
    fit, whose weights are not finite, or where there are no weights; ValueError for a name that is unknown, missing, or
    not that of the source.
    """
    text = os.fspath(source)
    if text.startswith(HUB):
        model = None if model == text else model
        text = os.fspath(hub_folder(text))
    if model is not None and not is_model(model):
        raise ValueError(unknown("model", model, timm.list_models()))
    given = None if task is None else find_task(task)
    if _names_network(text):
        loaded = _published(text)
    elif (folder := _exported(text)) is not None:
        loaded = _from_folder(folder, given)
    else:
        loaded = _from_file(model, text, given)
    if given is not None and given != loaded.task:
        raise ValueError(
            f"the task is said to be {given.name!r}, but {text!r} is of {loaded.task.name!r}: leave the task out"
        )
    if model is not None and model.partition(".")[0] != loaded.name:
        raise ValueError(
            f"the model is said to be {model!r}, but {text!r} holds {loaded.name!r}: leave the name out, or pass "
            "another checkpoint"
        )
    return loaded


def _names_network(source: str) -> bool:
    """Whether `source` is the name of a network rather than of a file.

    Raises ValueError where it is neither and looks like a misspelt name.
    """
    exists = os.path.lexists(os.path.expanduser(source))
    if is_model(source):
        return "." not in source or not exists  # `vmamba_nano.pth` may be a name with a tag
    if not exists and source.isidentifier() and get_close_matches(source, timm.list_models(), n=1):
        raise ValueError(f"there is no file {source!r}; {unknown('model', source, timm.list_models())}")
    return False


def _loaded(
    network: nn.Module,
    source: str,
    *,
    data_config: Mapping[str, Any] | None = None,
    class_names: list[str] | None = None,
) -> LoadedModel:
    timm_network: Any = network
    cfg = timm_network.pretrained_cfg
    classes: int = timm_network.num_classes
    if class_names is None:
        class_names = _labels(cfg.get("label_names"), classes)
    if class_names is None and (subset := infer_imagenet_subset(network)):
        class_names = list(ImageNetInfo(subset).label_names())
    if class_names is not None:
        if len(class_names) > classes:
            raise CheckpointError(f"{source} names {len(class_names)} classes, the network has {classes}")
        class_names = [*class_names, *map(str, range(len(class_names), classes))]
    _check_finite(network, source)
    name = cfg["architecture"]
    images = resolve_model_data_config(network, pretrained_cfg=data_config)
    channels = getattr(network, "in_chans", images["input_size"][0])
    if images["input_size"][0] != channels:
        raise CheckpointError(
            f"{source}: input_size is {list(images['input_size'])}, the network takes {channels} channels"
        )
    return LoadedModel(
        name=name,
        network=network.eval(),
        data_config=images,
        class_names=class_names,
        description=f"{name}, {classes} classes, from {source}",
        task=find_task(DEFAULT),
    )


def _task_of(name: Any, given: TaskFolder | None, source: str) -> TaskFolder:
    """The task that a file names. Code runs only where it is this library's, or the user named its folder."""
    name = DEFAULT if name is None else name
    if given is not None and given.name == name:
        return given
    if name in TASKS:
        return find_task(name)
    raise CheckpointError(
        f"{source!r} is of the task {name!r}, which is none of this library's: expected --task FOLDER, its folder"
    )


def _labels(names: Any, classes: int) -> list[str] | None:
    """timm stores a list, or a dictionary from the index where some classes have no name."""
    if not names:
        return None
    if isinstance(names, Mapping):
        return [str(names.get(i, names.get(str(i), i))) for i in range(classes)]
    return [str(name) for name in names]


def _check_finite(network: nn.Module, source: str) -> None:
    """Raise CheckpointError where a weight is NaN or infinite: whatever such a network computes means nothing."""
    bad = [name for name, value in network.named_parameters() if not torch.isfinite(value).all()]
    bad += [name for name, value in network.named_buffers() if torch.isnan(value).any()]
    if bad:
        raise CheckpointError(
            f"{source}: {bad[0]} is not finite (NaN or infinite), as are {len(bad)} tensors in all"
        )


def _published(model: str) -> LoadedModel:
    try:
        cfg = timm.get_pretrained_cfg(model)
        known = cfg is not None and cfg.has_weights
        if cfg is not None and known and offline() and (cfg.url or not os.environ.get("HF_HUB_OFFLINE")):
            _check_cached(model, str(cfg.url or ""))
        network = timm.create_model(model, pretrained=True) if known else None
    except Exception as error:  # files, archives, names, servers go wrong in their own ways
        raise CheckpointError(
            f"cannot load the published weights of {model} ({_first_line(error)}): expected a checkpoint"
        ) from error
    if network is None:
        raise CheckpointError(f"no published weights of {model} are known: expected a checkpoint")
    return _loaded(network, "its published weights")


def _check_cached(model: str, url: str) -> None:
    """Raise CheckpointError unless the file lies where timm would keep it."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(url).path).name
    if not url or not path.is_file():
        where = (
            f" Put {url} there by hand: {path}" if url else " HF_HUB_OFFLINE=1 looks in Hugging Face's cache."
        )
        raise CheckpointError(f"GANGLION_OFFLINE is set: the weights of {model} are not downloaded.{where}")


def _exported(source: str) -> Path | None:
    """The folder that `source` is, or whose weights it is. Raises CheckpointError for a folder of something else."""
    path = Path(source).expanduser()
    if path.is_dir():
        if os.path.lexists(path / "config.json"):
            return path
        folders = sorted(p.parent for p in path.glob("*/config.json"))
        files = sorted(p for p in (*path.glob("*"), *path.glob("checkpoints/*")) if p.suffix in _SUFFIXES)
        hint = f". In it are {', '.join(map(str, (folders + files)[:8]))}" if folders or files else ""
        raise CheckpointError(
            f"the folder {str(path)!r} has no config.json: expected one with config.json and model.safetensors, or a "
            f"file{hint}"
        )
    if path.name == "model.safetensors" and path.exists() and os.path.lexists(path.parent / "config.json"):
        return path.parent
    return None


def _from_folder(folder: Path, given: TaskFolder | None) -> LoadedModel:
    config = read_config(folder)
    task, history = _task_of(config.get("task"), given, str(folder)), read_history(config.get("training"))
    if task.name != DEFAULT:
        check_training(config.get("ganglion"), repr(str(folder / "config.json")), task.name)
        weights = read_weights(folder / "model.safetensors")
        return replace(_of_task(task, config["ganglion"], weights, str(folder)), training=history)
    for file in folder.iterdir():
        if file.suffix in (".safetensors", ".bin", ".pth", ".npz"):
            check_regular(file)
    _check_classifier(folder, config)
    try:
        network = timm.create_model(f"local-dir:{folder}", pretrained=True)
    # A configuration that was damaged, or is another version's, makes constructors raise whatever they stumble on.
    except Exception as error:
        raise CheckpointError(
            f"cannot load the exported network in {str(folder)!r}: {_said(error)}"
        ) from error
    return replace(_loaded(network, str(folder)), training=history)


def _check_classifier(folder: Path, config: Mapping[str, Any]) -> None:
    """Raise CheckpointError where weights and config.json disagree on the classes: timm would give the network a
    random classifier, of any size."""
    cfg = config.get("pretrained_cfg") or config
    layer, file = cfg.get("classifier"), folder / "model.safetensors"
    if not isinstance(layer, str) or not file.is_file():
        return
    try:
        with safe_open(file, "pt") as tensors:
            if f"{layer}.weight" not in tensors.keys():  # noqa: SIM118  it is no dictionary
                return
            found = tensors.get_slice(f"{layer}.weight").get_shape()[0]
    except Exception as error:
        raise CheckpointError(f"{str(file)!r} is truncated or damaged: {_first_line(error)}") from error
    parts = {"": config, "pretrained_cfg.": cfg, "model_args.": config.get("model_args") or {}}
    for prefix, part in parts.items():
        classes = part.get("num_classes")
        if classes is not None and classes != found:
            raise CheckpointError(
                f"{str(folder / 'config.json')!r}: {prefix}num_classes is {classes}, {file.name} has {found} classes"
            )


def _from_file(model: str | None, source: str, given: TaskFolder | None) -> LoadedModel:
    content = read_weights(source)
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f"{source!r} holds a {type(content).__name__}: expected a dictionary of tensors"
        )
    if "ganglion" in content:
        return from_training(content, source, given)
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
    except (ValueError, RuntimeError) as error:
        raise CheckpointError(f"cannot load {source!r} into {model}: {error}") from error
    return _loaded(network, source)


def from_training(content: Mapping[str, Any], source: str, given: TaskFolder | None = None) -> LoadedModel:
    """The network of a training checkpoint of `ganglion fit`, with its averaged weights if it has some.

    source: where the content is from. given: its task, if that is none of this library's. Raises CheckpointError.
    """
    made_of = content["ganglion"]
    if not isinstance(made_of, Mapping):
        raise CheckpointError(f"{source!r}: ganglion is {made_of!r}: expected a mapping")
    task = _task_of(made_of.get("task"), given, source)
    check_training(made_of, repr(source), task.name)
    state = content.get("state_dict")
    if not isinstance(state, Mapping):
        raise CheckpointError(
            f"{source!r} has no state_dict, or one that is no mapping: expected the weights"
        )
    weights = {
        str(name).removeprefix(_PREFIX): t for name, t in state.items() if str(name).startswith(_PREFIX)
    }
    said = source + (" (averaged weights)" if "current_model_state" in content else "")
    history = {"steps": content.get("global_step"), "measured": content.get("measured")}
    if isinstance(length := content.get("length"), Mapping):
        history["images"] = length.get("images")
    return replace(_of_task(task, made_of, weights, source, said), training=read_history(history))


def _of_task(
    task: TaskFolder, made_of: Mapping[str, Any], weights: Any, source: str, said: str | None = None
) -> LoadedModel:
    """The network that a task builds from a description, with these weights. said: what to call the source."""
    said = said or source
    try:
        network: nn.Module = task.prediction.build(made_of)
        network.load_state_dict(weights)
    except Exception as error:
        raise CheckpointError(
            f"the training checkpoint {source!r} cannot be rebuilt: {_said(error)}"
        ) from error
    if task.name == DEFAULT:
        names = _labels(made_of["class_names"], made_of["num_classes"])
        return _loaded(network, said, data_config=made_of["data_config"], class_names=names)
    _check_finite(network, said)
    name = made_of.get("model") or type(network).__name__
    return LoadedModel(
        name=name,
        network=network.eval(),
        data_config=dict(made_of["data_config"]),
        class_names=made_of.get("class_names"),
        description=f"{name}, {task.name}, from {said}",
        task=task,
        made_of=made_of,
    )


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _said(error: BaseException) -> str:
    """An error of somebody else's code, whose text often makes no sense without its kind."""
    return (
        _first_line(error)
        if isinstance(error, (ValueError, OSError))
        else f"{type(error).__name__}: {_first_line(error)}"
    )
