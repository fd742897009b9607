"""`export_model`: a network as a file, proven where this library is not."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import unknown
from ..files import replacing
from ..hub.card import CardError, write_card
from ..ops.cpu import library
from ..tasks.loaded_model import LoadedModel
from .features import pyramid_of
from .int8 import with_int8_weights
from .program import Traced, trace
from .proof import ExportError, compare, prove

_Writer = Callable[..., dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class _Format:
    """suffix: by which a file is known, where no other format has it first. weights: suffix of a second file that has
    them, if one does. packages: what writes and proves it needs. bound: of the largest relative error. sizes: whether
    height and width may be dynamic."""

    suffix: str
    bound: float
    weights: str | None = None
    packages: tuple[str, ...] = ()
    sizes: bool = True


#: What a file can be. `aoti` is compiled for the processor at hand; `openvino` is a pair of .xml and .bin.
FORMATS = {
    "onnx": _Format(suffix=".onnx", bound=1e-5, packages=("onnx", "onnxscript", "onnxruntime")),
    "pt2": _Format(suffix=".pt2", bound=1e-6),
    "aoti": _Format(suffix=".pt2", bound=1e-5, sizes=False),
    "openvino": _Format(
        suffix=".xml", bound=1e-5, weights=".bin", packages=("onnx", "onnxscript", "openvino")
    ),
}


def export_model(
    model: nn.Module | LoadedModel,
    path: str | os.PathLike[str],
    *,
    size: int | Sequence[int],
    dynamic: Sequence[str] = (),
    format: str | None = None,
    features: bool = False,
    softmax: bool = False,
    loop_free: bool = False,
    native: bool = False,
    int8: bool = False,
    images: Tensor | None = None,
    metadata: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write a network as a file that runs without this library, prove it, and return the report.

    The file is run in a fresh process where this library cannot be imported, on three inputs, and compared with the
    model; only then does it take its name. The report also lies beside it, as `NAME.json`, and the network's card, as
    `NAME.md`, where the network came with what is known of its accuracy (`load_model`).

    model: float32; a classifier, a pyramid (`features_only`), a segmentor, or a detector, of which the dense part is
        exported: maps, objectness and deltas of each level. Its mode is left as it is; the file is for inference.
    path: of the file; its suffix says the format (`FORMATS`): .onnx, .pt2 (torch.export) or .xml (OpenVINO).
    size: height and width of the images.
    dynamic: what may differ when the file is run, of "batch" and "size".
    format: where the suffix does not say it: "aoti", a .pt2 that AOTInductor compiled for the processor at hand.
    features: the maps of a classifier's four stages in place of its logits.
    softmax: probabilities in place of a classifier's logits.
    loop_free: ONNX without Scan, for runtimes that lack it; of one size.
    native: ONNX for onnxruntime with this library's kernels, `onnxruntime_library()`: the scan at its full speed.
    int8: weights of linear layers and convolutions in eight bits (`with_int8_weights`). The file is held against the
        network with these weights, and the report's `int8` says how far that one is from the network as it was.
    images: for `int8`, images (N, channels, H, W) as the network takes them, on which the two are compared; those of
        the proof without them, which are noise.
    metadata: further entries that travel in the file, as JSON.
    overwrite: leave to write over a file that this function did not write.

    Returns a plain dict: file, format, megabytes, sha256, seconds, inputs and outputs with their axes, `checks` of the
    three inputs with absolute and relative errors and the agreement on the largest logit, milliseconds beside those of
    eager mode, and `card`, its file or None.

    Raises ValueError for arguments that make no sense or sizes that the network does not take; RuntimeError where
    `native` finds no native library; ImportError for missing packages, with the command that installs them; OSError
    where the file cannot be written; `ExportError` where it does not run, or is off by more than the format's bound
    (1e-5; 1e-6 of .pt2), relative to the largest value.
    """
    path = Path(path)
    format = _format(path, format)
    _check_request(path, format, dynamic, loop_free, native, int8, images, overwrite)
    said = _said_of(model) | dict(metadata or {})
    network = model.network if isinstance(model, LoadedModel) else model
    _check_float32(network)
    start = time.perf_counter()
    training = {module: module.training for module in network.modules()}
    on_cpu = all(t.device.type == "cpu" for t in network.state_dict().values())
    network = network if on_cpu and not features else copy.deepcopy(network).cpu()
    if features:
        network = pyramid_of(network)
    weights = FORMATS[format].weights
    try:
        given = network.eval()
        network = with_int8_weights(given) if int8 else given
        traced = trace(network, size=size, dynamic=dynamic, softmax=softmax)
        said |= _facts(given, traced) | ({"weights": "int8"} if int8 else {})
        with contextlib.ExitStack() as stack:
            temporary = stack.enter_context(replacing(path))
            files = {path: temporary}
            if weights is not None:
                files[path.with_suffix(weights)] = stack.enter_context(replacing(path.with_suffix(weights)))
            about = _write(format, traced, temporary, said, loop_free, native)
            seconds = round(time.perf_counter() - start, 1)
            report = _report(files, format, traced, about, seconds)
            report |= prove(format, temporary, traced, library=onnxruntime_library() if native else None)
            if int8:
                report["int8"] = compare(given, traced, images)
            bound = FORMATS[format].bound
            report |= {"bound": bound, "passed": report["max_relative_error"] <= bound}
            if not report["passed"]:
                raise ExportError(
                    f"{path} computes something else: its error is {report['max_relative_error']:.1e} of the largest "
                    f"value, the bound is {bound:.0e}. It is not kept",
                    report,
                )
    finally:
        for module, was in training.items():
            module.training = was
    report["card"] = _card(path, model, report)
    with replacing(report_path(path)) as temporary:
        temporary.write_text(json.dumps(report | {"model": said}, indent=2) + "\n")
    return report


def _card(path: Path, model: nn.Module | LoadedModel, report: Mapping[str, Any]) -> str | None:
    """The card of a file, written beside it; None where nothing is known of the network's accuracy."""
    card = path.with_name(f"{path.name}.md")
    try:
        if isinstance(model, LoadedModel):
            write_card(model, card, report=report)
            return str(card)
    except CardError:
        pass
    return None


def onnxruntime_library() -> Path:
    """What `SessionOptions.register_custom_ops_library` takes for files of `export_model(..., native=True)`.

    It needs neither Python nor torch: copy it to where such a file runs, on a machine of the same kind. It runs on as
    many threads as OpenMP has (OMP_NUM_THREADS).

    Raises RuntimeError if the native code was not built.
    """
    if (why := library.unavailable()) is not None:
        raise RuntimeError(why)
    return library.path()


def report_path(path: Path) -> Path:
    """Where the report of a file lies."""
    return path.with_name(f"{path.name}.json")


def _format(path: Path, format: str | None) -> str:
    if format is None:
        found = next((name for name, f in FORMATS.items() if f.suffix == path.suffix), None)
        if found is None:
            suffixes = ", ".join(dict.fromkeys(f.suffix for f in FORMATS.values()))
            raise ValueError(f"{path}: unknown suffix {path.suffix!r}. Expected one of {suffixes}")
        return found
    if format not in FORMATS:
        raise ValueError(unknown("format", format, FORMATS))
    if path.suffix != FORMATS[format].suffix:
        raise ValueError(
            f"{path}: a file of {format} has the suffix {FORMATS[format].suffix}, not {path.suffix!r}"
        )
    return format


def _check_request(
    path: Path,
    format: str,
    dynamic: Sequence[str],
    loop_free: bool,
    native: bool,
    int8: bool,
    images: Tensor | None,
    overwrite: bool,
) -> None:
    """All that can be said before anything is computed."""
    if isinstance(dynamic, str):
        raise ValueError(f"dynamic={dynamic!r}: expected a sequence of names, such as ({dynamic!r},)")
    if images is not None and not int8:
        raise ValueError("images are for int8, which is left out")
    if images is not None and (images.dim() != 4 or not len(images)):
        raise ValueError(f"images are of {tuple(images.shape)}: expected (N, channels, H, W)")
    if (loop_free or native) and format != "onnx":
        raise ValueError(
            f"{'loop_free' if loop_free else 'native'} is a form of ONNX, the format is {format}"
        )
    if loop_free and native:
        raise ValueError("loop_free and native are two forms of the scan: expected one of them")
    if native:
        onnxruntime_library()
    if "size" in dynamic and not FORMATS[format].sizes:
        raise ValueError(
            f"{format} serves one size: leave 'size' out of dynamic, or export to another format"
        )
    missing = [name for name in FORMATS[format].packages if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(f"{format} needs {', '.join(missing)}: pip install {' '.join(missing)}")
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder: expected a file")
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise PermissionError(f"{path}: cannot write to the folder {str(path.parent)!r}")
    weights = FORMATS[format].weights
    for file in (path, *([path.with_suffix(weights)] if weights else [])):
        if os.path.lexists(file) and not overwrite and not _is_ours(path, file):
            raise FileExistsError(
                f"{file} is there already and was not written by an export: expected another name"
            )


def _is_ours(path: Path, file: Path) -> bool:
    """Whether a file is as the export to `path` left it, by the report."""
    try:
        said = json.loads(report_path(path).read_bytes())
        return _sha256(file) == (said["sha256"] if file == path else said["weights_file"]["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _check_float32(network: nn.Module) -> None:
    for name, value in network.state_dict().items():
        if value.is_floating_point() and value.dtype != torch.float32:
            raise ValueError(f"{name} is {value.dtype}: expected a network in float32, model.float()")


def _said_of(model: nn.Module | LoadedModel) -> dict[str, Any]:
    """What a file says of the network beside its tensors."""
    try:
        version = importlib.metadata.version("ganglion")
    except importlib.metadata.PackageNotFoundError:  # used from a checkout
        version = "unknown"
    said: dict[str, Any] = {"version": version}
    if isinstance(model, LoadedModel):
        names = model.class_names
        return (
            said
            | {"architecture": model.name, "class_names": names, "task": model.task.name}
            | model.data_config
        )
    cfg = getattr(model, "pretrained_cfg", None)
    if cfg:
        kept = ("architecture", "input_size", "mean", "std", "interpolation", "crop_pct")
        said |= {key: cfg[key] for key in kept if cfg.get(key) is not None}
    return said


def _facts(network: nn.Module, traced: Traced) -> dict[str, Any]:
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return {
        "weights_sha256": digest.hexdigest(),
        "size": list(traced.example.shape[2:]),
        "dynamic": list(traced.dynamic),
        "smallest_side": traced.least,
    }


def _write(
    format: str, traced: Traced, path: Path, said: Mapping[str, Any], loop_free: bool, native: bool
) -> dict[str, Any]:
    # What each needs is imported here: nobody who does not export waits for it.
    if format == "onnx":
        from .onnx_model import write_onnx

        return write_onnx(traced, path, metadata=said, loop_free=loop_free, native=native)
    if format == "openvino":
        from .openvino_model import write_openvino

        return write_openvino(traced, path, metadata=said)
    from .portable import write_aoti, write_pt2

    return (write_pt2 if format == "pt2" else write_aoti)(traced, path, metadata=said)


def _report(
    files: Mapping[Path, Path], format: str, traced: Traced, about: Mapping[str, Any], seconds: float
) -> dict[str, Any]:
    """files: what is written, under its name, and where it lies now."""
    (path, written), *others = files.items()
    for name, file in others:
        about = {**about, "weights_file": {"file": str(name), "sha256": _sha256(file)}}
    batch, channels, height, width = traced.example.shape
    sides = ["height", "width"] if "size" in traced.dynamic else [height, width]
    return {
        "file": str(path),
        "format": format,
        "megabytes": round(sum(file.stat().st_size for file in files.values()) / 1e6, 3),
        "sha256": _sha256(written),
        "seconds": seconds,
        "inputs": {"images": ["batch" if "batch" in traced.dynamic else batch, channels, *sides]},
        "outputs": traced.outputs,
        **about,
    }


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
