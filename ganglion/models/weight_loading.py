"""Loading weights into a network: from a file, a URL or a state dict, in the published names or ours.

Everything is converted and checked before the first value of the model changes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any, ClassVar, Literal, Protocol, get_args, runtime_checkable

import torch
import torch.nn.functional as F
from timm.models import adapt_input_conv
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..errors import unknown
from . import weight_names
from .backbone import Backbone
from .state_dicts import Weights, find_network, plain_name, shorten
from .weight_files import CheckpointError, read_weights


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
    adapted: those of them that were brought into the model's shape by computation: position embeddings of another
        size, and (strict=False) the first layer for another number of input channels.
    missing: those that the file does not have; misshapen: those that it has in another shape. Both keep their
        values.
    not_finite: loaded tensors with values that are infinite or NaN.
    unexpected: the file's tensors, in its own names, that the model does not have.
    ignored: entries of the file outside the network, such as a detector's neck.
    """

    layout: Literal["vmamba", "sparx", "ganglion"]
    loaded: tuple[str, ...]
    adapted: tuple[Mismatch, ...] = ()
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    misshapen: tuple[Mismatch, ...] = ()
    not_finite: tuple[str, ...] = ()
    ignored: tuple[str, ...] = field(default=(), repr=False)

    @property
    def matches(self) -> bool:
        """Whether file and model have the same names and shapes, after adaption, and every value is finite."""
        return not (self.missing or self.unexpected or self.misshapen or self.not_finite)

    @property
    def complete(self) -> bool:
        """Whether file and model matched in every name and shape as they are, and every value is finite."""
        return self.matches and not self.adapted

    @property
    def all_but_classifier(self) -> bool:
        """Whether file and model match but for the last linear layer, which the file may have or not."""
        others = {*self.missing, *(m.name for m in self.misshapen)} - set(_CLASSIFIER)
        return not (others or self.unexpected or self.not_finite)

    @property
    def other_classes(self) -> int | None:
        """The file's number of classes if that alone keeps it from matching the model, else None."""
        found = {m.name: m.found for m in self.misshapen}
        if self.all_but_classifier and not self.missing and found.keys() == set(_CLASSIFIER):
            return found[_CLASSIFIER[0]][0]
        return None

    def __str__(self) -> str:
        lines = [f"{len(self.loaded)} tensors loaded (names: {self.layout})"]
        for title in ("adapted", "missing", "unexpected", "misshapen", "not_finite"):
            if entries := getattr(self, title):
                lines.append(f"{len(entries)} {title.replace('_', ' ')}: {shorten(entries)}")
        return "\n  ".join(lines)


@runtime_checkable
class WithHeads(Protocol):
    """A detector or segmentor: a module with a network of this library as its backbone, and heads."""

    #: The published names of its parameters outside the backbone, and ours, as the rules of `weight_names`.
    official_names: ClassVar[weight_names.Rules]


_CLASSIFIER = ("head.fc.weight", "head.fc.bias")
_FIRST_CONV = "stem.0.conv.weight"


def load_checkpoint(
    model: nn.Module,
    source: str | os.PathLike[str] | Mapping[str, Any],
    *,
    strict: bool = True,
    weights: Weights = "auto",
    sha256: str | None = None,
) -> LoadReport:
    """Load published or own weights into a network of this library.

    model: the network, or a module that holds one (compiled, parallel, a feature extractor), or a detector or
        segmentor, whose heads are loaded too if the source has any of their tensors.
    source: a path to a .safetensors or .pth file, an https URL (kept in torch.hub's folder), or a dictionary:
        a state dict, or one that holds it as training scripts write it. Names may be VMamba's (releases, the
        old vanilla ones, the single-file rewrite, detection and segmentation networks), SparX's (all three
        tasks), or ours. Position embeddings are resized (bicubic); 1x1 convolutions and linear layers are
        taken for each other.
    strict: raise unless every name and shape matches and every value is finite. If False, load what matches; the
        first layer is then adapted to another number of input channels, as timm does for its pretrained weights.
    weights: "raw" or "ema" (averaged) ones of a file that has both; "auto" takes the averaged ones if any.
    sha256: of the file, see `read_weights`.

    Buffers that no file holds are re-initialised, so a model may have been made on the meta device and moved with
    `to_empty`.

    Returns what matched and what did not.

    Raises FileNotFoundError or another OSError for a file that cannot be opened, or CheckpointError for one that is
    damaged, foreign, needs code to be read, holds several networks, or (strict) does not match, and ValueError for a
    model that cannot be loaded into. The model is then unchanged.
    """
    if weights not in get_args(Weights):
        raise ValueError(unknown("value of `weights`", weights, get_args(Weights)))
    foreign = isinstance(model, WithHeads) and not any(isinstance(m, Backbone) for m in model.modules())
    backbone = None if foreign else _network(model)
    if isinstance(source, Mapping):
        where, content = "the state dict", source
    else:
        where, content = f"{os.fspath(source)!r}", read_weights(source, sha256=sha256)
    if backbone is None:
        return _load_own(model, content, where, strict)
    tensors, others = find_network(content, weights, where)
    converted, report = _fit(tensors, backbone, tuple(others), adapt=not strict)
    heads: dict[str, Tensor] = {}
    if isinstance(model, WithHeads):
        heads, report = _fit_heads(others, model, report)

    if not report.loaded:
        raise CheckpointError(
            f"{where} has no tensor of {type(backbone).__name__}: its names are {shorten(list(tensors), 3)}. "
            "Expected a checkpoint of VMamba or SparX in the published names, or one of this library.",
            report,
        )
    if strict and not report.matches:
        raise CheckpointError(
            f"{where} does not match {type(model).__name__}.\n  {_explain(report, backbone)}", report
        )
    for part, values in ((backbone, converted), (model, heads)):
        loaded = set(report.loaded) & values.keys()
        part.load_state_dict(
            {name: values[plain] for name in part.state_dict() if (plain := plain_name(name)) in loaded},
            strict=False,
        )
    return report


def _load_own(model: nn.Module, content: Any, where: str, strict: bool) -> LoadReport:
    """A detector's or segmentor's own weights, where its backbone is timm's, which nobody published with it."""
    inner = content.get("state_dict", content)
    given = {plain_name(name): t for name, t in inner.items() if isinstance(t, Tensor)}
    own = {plain_name(name): t for name, t in model.state_dict().items()}
    both = [name for name in own if name in given]
    misshapen = [
        Mismatch(name=name, found=tuple(given[name].shape), expected=tuple(own[name].shape))
        for name in both
        if given[name].shape != own[name].shape
    ]
    fitting = [name for name in both if given[name].shape == own[name].shape]
    for name in fitting:
        _check_kind(given[name], name, own[name])
    report = LoadReport(
        layout="ganglion",
        loaded=tuple(fitting),
        missing=tuple(name for name in own if name not in given),
        unexpected=tuple(name for name in given if name not in own),
        misshapen=tuple(misshapen),
        not_finite=tuple(name for name in fitting if not _is_finite(given[name])),
    )
    if not report.loaded or (strict and not report.matches):
        raise CheckpointError(f"{where} does not match {type(model).__name__}.\n  {report}", report)
    values = {name: given[plain] for name in model.state_dict() if (plain := plain_name(name)) in fitting}
    model.load_state_dict(values, strict=False)
    return report


def _network(model: nn.Module) -> Backbone:
    """The network of this library in `model`, after checking that values can be copied into it."""
    found = [module for module in model.modules() if isinstance(module, Backbone)]
    if len(found) != 1:
        raise ValueError(
            f"{type(model).__name__} holds {len(found)} networks of this library: expected one, or a module with one"
        )
    for name, tensor in chain(found[0].named_parameters(), found[0].named_buffers()):
        if tensor.is_meta:
            raise ValueError(
                "the model is on the meta device, which has no memory to load into: call to_empty() first"
            )
        obstacle = _obstacle(tensor)
        if tensor.is_inference() and not torch.is_inference_mode_enabled():
            obstacle = "made in inference mode"
        if obstacle is not None:
            raise ValueError(
                f"{name} of the model is {obstacle}, which values cannot be copied into: load before"
            )
    return found[0]


def checkpoint_filter_fn(state_dict: Mapping[str, Any], model: nn.Module) -> dict[str, Tensor]:
    """Any published layout -> the model's names and shapes as far as they match, for timm's model builder."""
    tensors, others = find_network(state_dict, "auto", "the checkpoint")
    return _fit(tensors, model, tuple(others), adapt=False)[0]


def _obstacle(tensor: Tensor) -> str | None:
    """What keeps values from being copied from or to a tensor, None if nothing."""
    kind = type(tensor)
    wrapped = kind.__torch_dispatch__ is not Tensor.__torch_dispatch__  # pyright: ignore[reportAttributeAccessIssue]  not in stubs
    if wrapped or is_lazy(tensor):
        return f"a {kind.__name__}"
    if tensor.is_nested:
        return "nested"
    if tensor.layout != torch.strided:
        return f"sparse ({tensor.layout})"
    if tensor.is_quantized or tensor.is_complex():
        return f"of {tensor.dtype}"
    return None


def _fit(
    tensors: dict[str, Tensor], model: nn.Module, ignored: tuple[str, ...], *, adapt: bool
) -> tuple[dict[str, Tensor], LoadReport]:
    """`tensors` under the model's names and, where they hold the same values, in its shapes and dtypes; what matches.

    adapt: also the first layer to the model's number of input channels.
    """
    own = {plain_name(name): target for name, target in model.state_dict().items()}
    names = weight_names.to_ganglion(tensors)
    converted: dict[str, Tensor] = {}
    loaded, adapted, unexpected, misshapen, not_finite = [], [], [], [], []
    for published, name in names.items():
        if name in converted:
            raise CheckpointError(f"two tensors of the checkpoint are {name}; one of them is {published}")
        tensor = converted[name] = tensors[published]
        target = own.get(name)
        if target is None:
            unexpected.append(published)
            continue
        _check_kind(tensor, published, target)
        tensor = _reshape(tensor, target.shape)
        found = tuple(tensor.shape)
        if tensor.shape != target.shape:
            tensor = _adapt(tensor, name, target.shape, first_conv=adapt)
        mismatch = Mismatch(name=name, found=found, expected=tuple(target.shape))
        if tensor.shape != target.shape:
            misshapen.append(mismatch)
        else:
            loaded.append(name)
            adapted += [mismatch] if found != mismatch.expected else []
            tensor = _to_dtype(tensor, published, target.dtype)
            not_finite += [name] if not _is_finite(tensor) else []
        converted[name] = tensor
    report = LoadReport(
        layout=weight_names.detect(tensors) or "ganglion",
        loaded=tuple(loaded),
        adapted=tuple(adapted),
        missing=tuple(name for name in own if name not in converted),
        unexpected=tuple(unexpected),
        misshapen=tuple(misshapen),
        not_finite=tuple(not_finite),
        ignored=ignored,
    )
    return converted, report


def _fit_heads(
    others: Mapping[str, Any], model: WithHeads, report: LoadReport
) -> tuple[dict[str, Tensor], LoadReport]:
    """Of what lies beside a backbone's tensors those of the heads, and the report with them. Both as they were if there
    are none: the weights of a classifier begin a detector."""
    assert isinstance(model, nn.Module)
    own = {plain_name(name): target for name, target in model.state_dict().items()}
    own = {name: target for name, target in own.items() if not name.startswith("backbone.")}
    given = {plain_name(name): value for name, value in others.items() if isinstance(value, Tensor)}
    names = {weight_names.rename(name, model.official_names): name for name in given}
    if not own.keys() & names.keys():
        return {}, report
    values: dict[str, Tensor] = {}
    misshapen, not_finite = [], []
    for name in own.keys() & names.keys():
        target, tensor = own[name], given[names[name]]
        _check_kind(tensor, names[name], target)
        if tensor.shape != target.shape:
            misshapen.append(Mismatch(name=name, found=tuple(tensor.shape), expected=tuple(target.shape)))
            continue
        values[name] = _to_dtype(tensor, names[name], target.dtype)
        not_finite += [name] if not _is_finite(values[name]) else []
    return values, replace(
        report,
        loaded=(*report.loaded, *(name for name in own if name in values)),
        missing=(*report.missing, *(name for name in own if name not in names)),
        unexpected=(*report.unexpected, *(given for name, given in names.items() if name not in own)),
        misshapen=(*report.misshapen, *misshapen),
        not_finite=(*report.not_finite, *not_finite),
        ignored=tuple(name for name in report.ignored if plain_name(name) not in given),
    )


def _check_kind(tensor: Tensor, name: str, target: Tensor) -> None:
    """Raise CheckpointError unless `tensor` has values like those of `target`."""
    obstacle = _obstacle(tensor)
    if obstacle is None and tensor.is_meta and not target.is_meta:
        obstacle = "on the meta device, without values"
    if obstacle is None and tensor.is_floating_point() != target.is_floating_point():
        obstacle = f"of {tensor.dtype}"
    if obstacle is not None:
        raise CheckpointError(f"{name} is {obstacle}, the model's is of {target.dtype}")


def _to_dtype(tensor: Tensor, name: str, dtype: torch.dtype) -> Tensor:
    try:
        return tensor.to(dtype)
    except (RuntimeError, NotImplementedError) as error:  # dtypes that torch stores and does not compute with
        raise CheckpointError(f"{name} is of {tensor.dtype}, the model's is of {dtype}") from error


def _is_finite(tensor: Tensor) -> bool:
    return tensor.is_meta or bool(torch.isfinite(tensor).all())


def _reshape(tensor: Tensor, shape: torch.Size) -> Tensor:
    """`tensor` in `shape` if only axes of size 1 or the joining of the first two axes tell them apart."""
    joined = (shape[0] * shape[1], *shape[2:]) if len(shape) == 3 else shape
    found, *same = ([n for n in s if n != 1] for s in (tensor.shape, shape, joined))
    return tensor.reshape(shape) if found in same else tensor


def _adapt(tensor: Tensor, name: str, shape: torch.Size, *, first_conv: bool) -> Tensor:
    """A position embedding in the size of `shape`; the first layer for its number of input channels, as timm has it."""
    if tensor.ndim != 4 or len(shape) != 4:
        return tensor
    if name == "pos_embed.weight" and tensor.shape[:2] == shape[:2]:
        resized = F.interpolate(tensor.float(), size=shape[2:], mode="bicubic", align_corners=False)
        return resized.to(tensor.dtype)
    if name == _FIRST_CONV and first_conv:
        return adapt_input_conv(shape[1], tensor, base_chans=tensor.shape[1])
    return tensor


def _explain(report: LoadReport, model: Backbone) -> str:
    lines = [str(report).replace("tensors loaded", "tensors match")]
    misshapen = {m.name: m for m in report.misshapen}
    if (head := misshapen.get(_CLASSIFIER[0])) is not None:
        lines.append(
            f"The classifier of the checkpoint has {head.found[0]} classes, the model's {head.expected[0]}: "
            f"create the model with num_classes={head.found[0]}, load, and call "
            f"reset_classifier({head.expected[0]})."
        )
    elif model.num_classes == 0 and any("head" in name or "classifier" in name for name in report.unexpected):
        lines.append("The model has no classifier (num_classes=0), the checkpoint has one.")
    stem = misshapen.get(_FIRST_CONV)
    if stem is not None and len(stem.found) == 4 and stem.found[1] != stem.expected[1]:
        lines.append(
            f"The checkpoint has {stem.found[1]} input channels, the model {stem.expected[1]}: "
            "strict=False adapts the first layer."
        )
    if report.not_finite:
        lines.append("Weights with infinite values or NaN give no result: expected another checkpoint.")
    lines.append("The model is unchanged. strict=False loads what matches and returns this as a report.")
    return "\n  ".join(lines)
