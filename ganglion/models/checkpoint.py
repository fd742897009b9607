"""Loading weights: from a file, a URL or a state dict, in the published names or ours.

A file is read as data only: safetensors, or torch's `weights_only` unpickler. Everything is converted and
checked before the first value of the model changes.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import pickle
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args
from urllib.error import URLError
from urllib.parse import urlparse

import safetensors
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import unknown
from . import official
from .backbone import Backbone

Weights = Literal["auto", "raw", "ema"]

#: Entries of a training file that hold weights. Lightning's EMA puts the averages into `state_dict`.
_RAW = ("current_model_state", "model", "state_dict")
_EMA = ("model_ema", "state_dict_ema", "ema_state_dict")

#: The first layer of a network, ours or published, behind what wraps it (`module.`, `backbone.`, ...).
_FIRST_LAYER = re.compile(r"(?P<prefix>(?:[^.]+\.)*?)(?:stem\.0\.|patch_embed\.(?:0|proj)\.)")

#: Classes that training files hold beside the weights. They are read as empty placeholders and dropped.
_BYSTANDERS = (
    "mmengine.logging.history_buffer.HistoryBuffer",
    "numpy.core.multiarray._reconstruct",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray._reconstruct",
    "numpy._core.multiarray.scalar",
    "numpy.ndarray",
    "numpy.dtype",
)


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, or that does not fit the model. The model is unchanged.

    report: what matched and what did not, when the file could be read; else None.
    """

    def __init__(self, message: str, report: LoadReport | None = None):
        super().__init__(message)
        self.report = report


@dataclass(frozen=True, kw_only=True)
class Mismatch:
    """A tensor whose shape is not the model's."""

    name: str
    found: tuple[int, ...]
    expected: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.name} is {self.found}, the model's is {self.expected}"


@dataclass(frozen=True, kw_only=True)
class LoadReport:
    """What `load_checkpoint` did.

    layout: whose names the file uses.
    loaded: the model's tensors that took the file's values.
    missing: those that the file does not have; misshapen: those that it has in another shape. Both keep their
        values.
    unexpected: the file's tensors, in its own names, that the model does not have.
    ignored: entries of the file outside the network, such as a detector's neck.
    """

    layout: Literal["vmamba", "sparx", "ganglion"]
    loaded: tuple[str, ...]
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    misshapen: tuple[Mismatch, ...] = ()
    ignored: tuple[str, ...] = field(default=(), repr=False)

    @property
    def complete(self) -> bool:
        """Whether file and model matched in every name and shape."""
        return not (self.missing or self.unexpected or self.misshapen)

    def __str__(self) -> str:
        lines = [f"{len(self.loaded)} tensors loaded (names: {self.layout})"]
        for title in ("missing", "unexpected", "misshapen"):
            if entries := getattr(self, title):
                lines.append(f"{len(entries)} {title}: {_shorten(entries)}")
        return "\n  ".join(lines)


def load_checkpoint(
    model: nn.Module,
    source: str | os.PathLike[str] | Mapping[str, Any],
    *,
    strict: bool = True,
    weights: Weights = "auto",
    sha256: str | None = None,
) -> LoadReport:
    """Load published or own weights into a network of this library.

    model: the network, or a module that holds one (compiled, parallel, a feature extractor, a detector).
    source: a path to a .safetensors or .pth file, an https URL (kept in torch.hub's folder), or a dictionary:
        a state dict, or one that holds it as training scripts write it. Names may be VMamba's (releases, the
        old vanilla ones, the single-file rewrite, detection and segmentation networks), SparX's (all three
        tasks), or ours. Position embeddings are resized (bicubic); 1x1 convolutions and linear layers are
        taken for each other.
    strict: raise unless every name and shape matches. If False, load what matches.
    weights: "raw" or "ema" (averaged) ones of a file that has both; "auto" takes the averaged ones if any.
    sha256: of the file, at least its first 8 hexadecimal digits. For a URL whose file name ends in
        "-<digits>" they are taken from there, as torch.hub does.

    Returns what matched and what did not.

    Raises FileNotFoundError, or CheckpointError for a file that is damaged, foreign, needs code to be read,
    or (strict) does not match. The model is then unchanged.
    """
    if weights not in get_args(Weights):
        raise ValueError(unknown("value of `weights`", weights, get_args(Weights)))
    model = _network(model)
    if any(p.is_meta for p in model.parameters()):
        raise ValueError(
            "the model is on the meta device, which has no memory to load into: call to_empty() first"
        )
    if isinstance(source, Mapping):
        where, content = "the state dict", source
    else:
        where, content = f"{os.fspath(source)!r}", _read(source, sha256)
    tensors, ignored = _find_tensors(content, weights, where)
    converted, report = _fit(tensors, model, ignored)

    if not report.loaded:
        raise CheckpointError(
            f"{where} has no tensor of {type(model).__name__}: its names are {_shorten(list(tensors), 3)}. "
            "Expected a checkpoint of VMamba or SparX in the published names, or one of this library.",
            report,
        )
    if strict and not report.complete:
        raise CheckpointError(
            f"{where} does not match {type(model).__name__}.\n  {_explain(report, model)}", report
        )
    model.load_state_dict({name: converted[name] for name in report.loaded}, strict=False)
    return report


def _network(model: nn.Module) -> Backbone:
    found = [module for module in model.modules() if isinstance(module, Backbone)]
    if len(found) != 1:
        raise ValueError(
            f"{type(model).__name__} holds {len(found)} networks of this library: expected one, or a module with one"
        )
    return found[0]


def checkpoint_filter_fn(state_dict: Mapping[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """Any published layout -> the model's names and shapes as far as they match, for timm's model builder."""
    tensors, ignored = _find_tensors(state_dict, "auto", "the checkpoint")
    return _fit(tensors, model, ignored)[0]


def _read(source: str | os.PathLike[str], sha256: str | None) -> Any:
    text = os.fspath(source)
    scheme = urlparse(text).scheme
    if len(scheme) > 1:  # one letter is a drive
        if scheme != "https":
            raise CheckpointError(f"{text!r}: expected a path, an https URL or a state dict, not {scheme!r}")
        path = _download(text, sha256)
    else:
        path = Path(text).expanduser()
        if path.is_dir():
            raise CheckpointError(
                f"{text!r} is a folder: pass the .safetensors or .pth file in it, or let timm read the "
                f"folder with timm.create_model('local-dir:{text}', pretrained=True)"
            )
        if not path.is_file():
            raise FileNotFoundError(f"no checkpoint at {text!r}")
        if sha256 is not None:
            _check_sha256(path, sha256)
    return _read_file(path, text)


def _download(url: str, sha256: str | None) -> Path:
    name = Path(urlparse(url).path).name
    in_name = torch.hub.HASH_REGEX.search(name)
    expected = sha256 or (in_name[1] if in_name else None)
    # Many releases call their file the same, so the folder is the URL's.
    path = Path(torch.hub.get_dir()) / "checkpoints" / hashlib.sha256(url.encode()).hexdigest()[:16] / name
    if path.is_file():
        if expected is not None:
            _check_sha256(path, expected)
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(url, str(path), hash_prefix=expected)
    except (URLError, OSError, RuntimeError) as error:  # RuntimeError: another hash
        raise CheckpointError(f"cannot download {url!r}: {error}") from error
    return path


def _check_sha256(path: Path, expected: str) -> None:
    if len(expected) < 8:
        raise ValueError(f"sha256 {expected!r}: expected at least 8 hexadecimal digits")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if not found.startswith(expected.lower()):
        raise CheckpointError(
            f"{str(path)!r} has sha256 {found}, expected {expected}: damaged, or another file"
        )


class _Placeholder:
    """Stands for a bystander: takes any construction and keeps nothing."""

    def __init__(self, *args: object):
        pass

    def __setstate__(self, state: object) -> None:
        pass


def _read_file(path: Path, name: str) -> Any:
    expected = "Expected a .safetensors file or one written by torch.save."
    with path.open("rb") as file:
        head = file.read(64)
    if head[8:9] != b"{" and not head.startswith((b"PK", b"\x80")):
        what = f"begins with {head[:24]!r}, which is no checkpoint" if head else "is empty"
        raise CheckpointError(f"{name!r} {what}. {expected}")
    try:
        if head[8:9] == b"{":
            return safetensors.torch.load_file(path)
        if head.startswith(b"PK") and not zipfile.is_zipfile(path):
            raise EOFError("the end of the archive is missing")
        placeholders: list[Any] = [(_Placeholder, bystander) for bystander in _BYSTANDERS]
        with torch.serialization.safe_globals([argparse.Namespace, *placeholders]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        refused = re.search(r"GLOBAL (\S+)", str(error))
        if refused is None:
            raise CheckpointError(
                f"{name!r} is damaged, or a pickle of something else. {expected}"
            ) from error
        raise CheckpointError(
            f"{name!r} holds {refused[1]}, which is not a tensor and could run code when loaded, so it is "
            "not. If you trust the file, save its state dict alone to a new file where it was made."
        ) from error
    except (safetensors.SafetensorError, RuntimeError, EOFError, LookupError, ValueError) as error:
        raise CheckpointError(f"{name!r} is truncated or damaged ({error}). {expected}") from error


def _find_tensors(content: Any, weights: Weights, where: str) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The tensors of the one network in `content`, without prefix, and the names of what was left aside."""
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{where} holds one {type(content).__name__}, expected a dictionary of tensors")
    entries = {str(name): value for name, value in _pick_entries(content, weights, where).items()}
    prefixes = sorted({match["prefix"] for name in entries if (match := _FIRST_LAYER.match(name))})
    if len(prefixes) > 1:
        raise CheckpointError(
            f"{where} holds several networks, named {_shorten(list(map(repr, prefixes)))}: "
            "pass the dictionary of one"
        )
    prefix = prefixes[0] if prefixes else ""
    tensors, ignored = {}, []
    for name, value in entries.items():
        if name.startswith(prefix) and isinstance(value, Tensor):
            tensors[name.removeprefix(prefix)] = value
        else:
            ignored.append(name)
    if not tensors:
        raise CheckpointError(
            f"{where} holds no tensors; its entries are {_shorten(list(map(repr, entries)))}"
        )
    return tensors, tuple(ignored)


def _pick_entries(content: Mapping[str, Any], weights: Weights, where: str) -> Mapping[str, Any]:
    """`content` itself if it is a state dict, else the entry with the weights asked for."""
    nested = [key for key in (*_EMA, *_RAW) if isinstance(content.get(key), Mapping)]
    ema = (*_EMA, "state_dict") if "current_model_state" in nested else _EMA
    averaged = [key for key in nested if key in ema]
    raw = [key for key in nested if key not in averaged]
    if weights == "ema" and not averaged:
        raise CheckpointError(
            f"{where} has no averaged weights: expected an entry {' or '.join(map(repr, _EMA))}"
        )
    if weights == "raw" and averaged and not raw:
        raise CheckpointError(f"{where} has averaged weights only, under {averaged[0]!r}")
    chosen = raw if weights == "raw" else averaged or raw
    return content[chosen[0]] if chosen else content


def _fit(
    tensors: dict[str, Tensor], model: nn.Module, ignored: tuple[str, ...]
) -> tuple[dict[str, Tensor], LoadReport]:
    """`tensors` under the model's names and, where they hold the same values, in its shapes; what matches."""
    own = model.state_dict()
    names = official.to_ganglion(tensors)
    converted: dict[str, Tensor] = {}
    loaded, unexpected, misshapen = [], [], []
    for published, name in names.items():
        if name in converted:
            raise CheckpointError(f"two tensors of the checkpoint are {name}; one of them is {published}")
        tensor = tensors[published]
        if name not in own:
            converted[name] = tensor
            unexpected.append(published)
            continue
        target = own[name]
        converted[name] = tensor = _reshape(tensor, name, target.shape)
        if tensor.is_floating_point() != target.is_floating_point() or tensor.is_complex():
            raise CheckpointError(f"{published} is of {tensor.dtype}, the model's is of {target.dtype}")
        if tensor.shape == target.shape:
            loaded.append(name)
        else:
            misshapen.append(Mismatch(name=name, found=tuple(tensor.shape), expected=tuple(target.shape)))
    report = LoadReport(
        layout=official.detect(tensors) or "ganglion",
        loaded=tuple(loaded),
        missing=tuple(name for name in own if name not in converted),
        unexpected=tuple(unexpected),
        misshapen=tuple(misshapen),
        ignored=ignored,
    )
    return converted, report


def _reshape(tensor: Tensor, name: str, shape: torch.Size) -> Tensor:
    """`tensor` in `shape` if only axes of size 1 or the joining of the first two axes tell them apart."""
    if tensor.shape == shape:
        return tensor
    joined = (shape[0] * shape[1], *shape[2:]) if len(shape) == 3 else shape
    found, *same = ([n for n in s if n != 1] for s in (tensor.shape, shape, joined))
    if found in same:
        return tensor.reshape(shape)
    if name == "pos_embed.weight" and tensor.ndim == 4 and tensor.shape[:2] == shape[:2]:
        return F.interpolate(tensor.float(), size=shape[2:], mode="bicubic", align_corners=False).to(
            tensor.dtype
        )
    return tensor


def _explain(report: LoadReport, model: Backbone) -> str:
    lines = [str(report).replace("tensors loaded", "tensors match")]
    head = next((m for m in report.misshapen if m.name == "head.fc.weight"), None)
    if head is not None:
        lines.append(
            f"The classifier of the checkpoint has {head.found[0]} classes, the model's {head.expected[0]}: "
            f"create the model with num_classes={head.found[0]}, load, and call "
            f"reset_classifier({head.expected[0]})."
        )
    elif model.num_classes == 0 and any("head" in name or "classifier" in name for name in report.unexpected):
        lines.append("The model has no classifier (num_classes=0), the checkpoint has one.")
    lines.append("The model is unchanged. strict=False loads what matches and returns this as a report.")
    return "\n  ".join(lines)


def _shorten(entries: Sequence[object], limit: int = 8) -> str:
    """The first `limit` entries, and how many more there are."""
    more = f" ... and {len(entries) - limit} more" if len(entries) > limit else ""
    return ", ".join(map(str, entries[:limit])) + more
