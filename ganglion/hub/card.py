"""The card of a network: a page with the hub's metadata that says what it is, how good, under which licence.

A card is a function of the network and of what its file says of itself. No path and no date is in it: a run that was
killed and resumed has the card of one that was not.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..analysis.accuracies import printed_accuracy
from ..analysis.complexity import complexity
from ..files import replacing
from ..tasks import DEFAULT, TASKS
from ..tasks.loaded_model import LoadedModel

#: Stands in every card that was written here, and says that it may be written anew.
MARK = "<!-- Written by ganglion, which may write it anew: take this line out to keep what you changed. -->"

#: A task's name in the hub's words.
_PIPELINES = {
    "classification": "image-classification",
    "detection": "object-detection",
    "segmentation": "image-segmentation",
}

#: What the hub calls the values that a task measures, where it has a name for them.
_METRICS = {"top1": "accuracy", "top5": "accuracy", "miou": "mean_iou"}

_PAPERS = {"vmamba": ("VMamba", "2401.10166"), "sparx": ("SparX", "2409.09649")}

#: Names of classes that a card spells out.
_FEW = 20


class CardError(ValueError):
    """A card that cannot be written, since nothing is known of the network's accuracy, or over another's text."""


def model_card(
    model: LoadedModel,
    *,
    source: str = "FOLDER",
    licence: str | None = None,
    report: Mapping[str, Any] | None = None,
) -> str:
    """The card of a network, in Markdown under a head of YAML that the hub reads.

    source: what `load_model` is given to load it.
    licence: of the weights, by the hub's identifier, such as "apache-2.0". None: what timm's description of published
        weights says; of others nobody has said it, and the card says so.
    report: of `export_model`, for the card of such a file: what runs it, its error and its speed.

    Raises CardError where nothing is known of its accuracy: a run without validation, untrained weights.
    """
    from huggingface_hub import EvalResult, ModelCardData

    results, where = _accuracy(model)
    licence = licence or _published_cfg(model).get("license")
    pipeline = _PIPELINES.get(model.task.name)
    data = ModelCardData(
        library_name="onnx"
        if _format(report) == "onnx"
        else "timm"
        if _is_timms(model, report)
        else "ganglion",
        license=licence,
        license_name="none-stated" if licence == "other" else None,
        pipeline_tag=pipeline,
        tags=["ganglion", *(name for name, _ in _family(model)), *([pipeline] if pipeline else [])],
        datasets=["imagenet-1k"] if where == "ImageNet-1k" else None,
        model_name=model.name,
        eval_results=[
            EvalResult(
                task_type=pipeline or "other",
                dataset_type="imagenet-1k" if where == "ImageNet-1k" else "own",
                dataset_name=where,
                metric_type=_METRICS.get(name, name),
                metric_name=_title(model, name),
                metric_value=round(value, 4),
            )
            for name, value in results.items()
        ],
    )
    parts = [
        f"---\n{data.to_yaml()}\n---\n\n{MARK}\n\n# {model.name}: {_what(model)}",
        _facts(model, licence, report),
        _accuracy_text(model, results, where),
        _training_text(model),
        _use_text(model, source, report),
        _limits_text(model, where),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def write_card(
    model: LoadedModel,
    path: str | os.PathLike[str],
    *,
    source: str = "FOLDER",
    licence: str | None = None,
    report: Mapping[str, Any] | None = None,
) -> None:
    """Write `model_card` to a file, whole or not at all.

    Raises CardError as that does, and where the file is not as a card was written; OSError.
    """
    path = Path(path)
    if os.path.lexists(path) and not is_ours(path):
        raise CardError(f"{path} is there already, and its text is not a card's of ours: it stays as it is")
    text = model_card(model, source=source, licence=licence, report=report)
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def is_ours(path: Path) -> bool:
    """Whether a file is a card that may be written anew."""
    try:
        return MARK in path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False


def _accuracy(model: LoadedModel) -> tuple[dict[str, float], str]:
    """The values by name, and of which images. Raises CardError where there are none."""
    measured = {
        name.removeprefix("val/"): float(value)
        for name, value in model.training.get("measured", {}).items()
        if "loss" not in name and math.isfinite(value)
    }
    if measured:
        return measured, "validation images of the run"
    printed = printed_accuracy(model.name)
    if printed is not None and _is_published(model):
        return {"top1": printed.top1}, "ImageNet-1k"
    raise CardError(
        f"no card of {model.description}: nothing is known of its accuracy. Expected a run with validation images"
    )


def _is_published(model: LoadedModel) -> bool:
    """Whether the weights are those that timm knows of by the network's name."""
    return model.description.endswith("published weights")


def _published_cfg(model: LoadedModel) -> Mapping[str, Any]:
    network: Any = model.network
    return getattr(network, "pretrained_cfg", {}) if _is_published(model) else {}


def _family(model: LoadedModel) -> list[tuple[str, str]]:
    """Tag and paper of the network or its backbone."""
    name = str(model.made_of.get("backbone") or model.name)
    return [(tag, paper) for tag, (_, paper) in _PAPERS.items() if tag in name]


def _is_timms(model: LoadedModel, report: Mapping[str, Any] | None) -> bool:
    return model.task.name == DEFAULT and report is None


def _format(report: Mapping[str, Any] | None) -> str | None:
    return None if report is None else report["format"]


def _title(model: LoadedModel, name: str) -> str:
    """How the task's tables name a value."""
    for kind in vars(model.task.metrics).values():
        titles = getattr(kind, "TITLES", {}) if isinstance(kind, type) else {}
        if name in titles:
            return titles[name]
    return name


def _what(model: LoadedModel) -> str:
    kind = _PIPELINES.get(model.task.name, model.task.name).replace("-", " ")
    over = f" over {backbone}" if (backbone := model.made_of.get("backbone")) else ""
    return f"{kind}{over}, {model.num_classes or 'unknown'} classes"


def _facts(model: LoadedModel, licence: str | None, report: Mapping[str, Any] | None) -> str:
    channels, height, width = model.data_config["input_size"]
    params = sum(p.numel() for p in model.network.parameters())
    rows = [("parameters", f"{params / 1e6:.2f} M")]
    if model.task.name in TASKS:
        cost = complexity(model.network, (height, width), in_chans=channels)
        rows.append(
            ("FLOPs", f"{cost.flops / 1e9:.3g} G multiply-accumulates, one image of {height} x {width}")
        )
    rows.append(("input", _input(model.data_config)))
    if names := model.class_names:
        listed = [f"`{name}`" for name in names[:_FEW]]
        rows.append(
            ("classes", ", ".join(listed) + (f" and {len(names) - _FEW} more" if names[_FEW:] else ""))
        )
    if report is not None:
        rows += [
            ("file", f"{Path(report['file']).name}, {report['format']}, {report['megabytes']} MB"),
            ("error", f"{report['max_relative_error']:.1e} of the largest value, against PyTorch"),
            (
                "speed",
                f"{report['milliseconds']} ms an input (PyTorch: {report['eager_milliseconds']} ms), where it was "
                "exported",
            ),
        ]
    else:
        rows.append(("speed", "not measured: `ganglion bench` does, on your machine"))
    said = "not stated: ask whoever gave you this file" if licence is None else licence
    if licence == "other":
        said = "none is stated where they are published"
    rows.append(("licence of the weights", said))
    rows += [("paper", f"[arXiv:{paper}](https://arxiv.org/abs/{paper})") for _, paper in _family(model)]
    return "\n".join(["| | |", "| --- | --- |", *(f"| {name} | {_cell(text)} |" for name, text in rows)])


def _input(images: Mapping[str, Any]) -> str:
    channels, height, width = images["input_size"]
    said = f"{channels} channels, {height} x {width}"
    for name in ("mean", "std"):
        if images.get(name) is not None:
            said += f", {name} {', '.join(f'{value:.4g}' for value in images[name])}"
    return said + (f", {images['interpolation']}" if images.get("interpolation") else "")


def _cell(text: str) -> str:
    """What a table of Markdown takes."""
    return text.replace("|", "\\|").replace("\n", " ")


def _accuracy_text(model: LoadedModel, results: Mapping[str, float], where: str) -> str:
    if where == "ImageNet-1k":
        printed = printed_accuracy(model.name)
        source = printed.source if printed else ""
        said = f"As printed ({source}), on ImageNet-1k's validation images at 224 pixels; not measured here."
    else:
        seed = model.training.get("recipe", {}).get("seed_everything")
        runs = "One run" if seed is None else f"One run, seed {seed}"
        said = (
            f"{runs}, on its own validation images, after its last epoch. Another seed gives another number."
        )
    lines = [f"| {_cell(_title(model, name))} | {value:.2f} |" for name, value in results.items()]
    return "\n".join(["## Accuracy", "", said, "", "| measure | value |", "| --- | ---: |", *lines])


def _training_text(model: LoadedModel) -> str:
    history, recipe = model.training, model.training.get("recipe", {})
    known = [f"{history[name]} {word}" for name, word in _COUNTS if name in history]
    if not known and not recipe:
        return ""
    lines = ["## Training", "", f"By `ganglion fit`: {', '.join(known)}." if known else "By `ganglion fit`."]
    if recipe:
        settings = [f"{name}: {json.dumps(value)}" for name, value in sorted(recipe.items())]
        lines += ["What its recipe sets, beside defaults:", "", "```yaml", *settings, "```"]
    return "\n".join(lines)


_COUNTS = (("images", "training images"), ("epochs", "epochs"), ("steps", "optimizer steps"))


def _use_text(model: LoadedModel, source: str, report: Mapping[str, Any] | None) -> str:
    if report is not None:
        return (
            "## Use\n\nThe file runs without this library. Class names, mean, std and size travel in it; the report "
            "beside it names inputs and outputs."
        )
    said = (
        f'## Use\n\n```python\nimport ganglion\n\nmodel = ganglion.load_model("{source}")\n'
        'print(ganglion.predict(model, "image.jpg"))\n```'
    )
    if model.task.name == DEFAULT:
        name = source if source.startswith("hf-hub:") else f"local-dir:{source}"
        said += (
            "\n\ntimm loads it, too, once `ganglion` is imported: "
            f'`timm.create_model("{name}", pretrained=True)`.'
        )
    return said


def _limits_text(model: LoadedModel, where: str) -> str:
    of = "ImageNet" if where == "ImageNet-1k" else "the images that it was validated on"
    lines = [
        f"The accuracy is that of {of}; of images from elsewhere it says nothing.",
        "An image always gets an answer, also where it shows none of the classes.",
        "What is unjust or wrong in the training images is learned with the rest; nobody has looked for it.",
    ]
    return "\n".join(["## Limits", "", *(f"* {line}" for line in lines)])
