"""A network as a file that runs without this library (ONNX, torch.export, OpenVINO), proven in a fresh process."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .common import add_source_arguments, check_size, fail, open_source, print_json, print_table
from .options import say_loading

if TYPE_CHECKING:
    from ganglion.tasks.loaded_model import LoadedModel

_EXAMPLES = """\
examples:
  ganglion export runs/one/model -o flowers.onnx
  ganglion export runs/one/model -o flowers.onnx --dynamic batch,size --softmax
  ganglion export vmamba_tiny_s1l8=vssm1_tiny_0230s_ckpt_epoch_264.pth -o vmamba.pt2
  ganglion export vmamba_tiny_s1l8=vssm1_tiny_0230s_ckpt_epoch_264.pth -o vmamba_tiny
  ganglion export sparx_mamba_nano -o nano.onnx --untrained --features --size 512 384

SOURCE is an exported folder, a training checkpoint, a name (its published weights), or NAME=FILE for a published file.
Of a detector the dense part is exported: maps, objectness and deltas of each level.
exit status: 0; 1 if the network cannot be exported, or the file computes something else; 2 for arguments that make no
sense
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog, parser.formatter_class = _EXAMPLES, argparse.RawDescriptionHelpFormatter
    parser.add_argument("source", metavar="SOURCE", help="a network")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        metavar="FILE",
        help="the file: .onnx, .pt2 or .xml; or, without a suffix, a folder as `ganglion fit` leaves it",
    )
    parser.add_argument(
        "--format",
        metavar="NAME",
        help="where the suffix does not say it: aoti, a compiled .pt2; safetensors, a folder",
    )
    add_source_arguments(parser)
    parser.add_argument(
        "--dynamic",
        default="",
        metavar="NAMES",
        help="what may differ when it is run: batch, size, or both: batch,size",
    )
    parser.add_argument(
        "--features", action="store_true", help="the maps of the stages in place of the logits"
    )
    parser.add_argument("--softmax", action="store_true", help="probabilities in place of the logits")
    parser.add_argument(
        "--loop-free", action="store_true", help="ONNX without Scan, for runtimes that lack it"
    )
    parser.add_argument(
        "--native", action="store_true", help="ONNX for onnxruntime with this library's own kernels"
    )
    parser.add_argument("--int8", action="store_true", help="weights in eight bits")
    parser.add_argument(
        "--task", metavar="FOLDER", help="a task of your own that SOURCE is of; its code runs"
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="write over a file that is there and was not written by an export",
    )


def run(args: argparse.Namespace) -> int:
    size, is_folder = check_size(args), _is_folder(args)
    say_loading("PyTorch and timm")
    from ganglion.export import ExportError, export_model

    loaded = open_source(args, args.source)
    if is_folder:
        return _write_folder(args, loaded)
    try:
        report = export_model(
            loaded,
            args.output,
            size=size or loaded.data_config["input_size"][1:],
            features=args.features,
            dynamic=tuple(name for name in args.dynamic.split(",") if name),
            format=args.format,
            softmax=args.softmax,
            loop_free=args.loop_free,
            native=args.native,
            int8=args.int8,
            overwrite=args.overwrite,
        )
    except ExportError as error:
        if error.report and not args.json:
            _print(error.report)
        fail(args, error)
    except (ValueError, RuntimeError, ImportError, OSError) as error:
        fail(args, error)
    if args.json:
        print_json(report)
    else:
        _print(report)
    return 0


def _is_folder(args: argparse.Namespace) -> bool:
    """Whether a folder is asked for. Exits with status 2 for options that are of files."""
    if not (args.format == "safetensors" or (args.format is None and not args.output.suffix)):
        return False
    given = ("size", "dynamic", "features", "softmax", "loop_free", "native", "int8")
    for name in given:
        if getattr(args, name):
            args.parser.error(f"--{name.replace('_', '-')}: a folder has the network as it is, without it")
    return True


def _write_folder(args: argparse.Namespace, loaded: LoadedModel) -> int:
    from ganglion.hub import write_folder
    from ganglion.training.errors import TrainingError

    try:
        why = write_folder(loaded, args.output)
    except (TrainingError, OSError) as error:
        fail(args, error)
    report = {"file": str(args.output), "format": "safetensors", "card": None if why else "README.md"}
    if args.json:
        print_json(report)
    else:
        print(f"  folder  {args.output}: model.safetensors, config.json{'' if why else ', README.md'}")
        if why:
            print(f"  no card: {why}")
    return 0


def _print(report: dict[str, Any]) -> None:
    for key, value in _lines(report):
        print(f"  {key:12}  {json.dumps(value) if isinstance(value, list) else value}")
    print()
    print_table(
        ("images", "error", "of the largest value", "same largest logit"),
        [
            [
                " x ".join(map(str, c["shape"])),
                f"{c['max_absolute_error']:.1e}",
                f"{c['max_relative_error']:.1e}",
                f"{100 * c['top1_agreement']:.0f} %",
            ]
            for c in report.get("checks", [])
        ],
        {1, 2, 3},
    )


def _lines(report: dict[str, Any]) -> list[tuple[str, Any]]:
    """What is said of a file, in words."""
    size = f"{report['megabytes']} MB, {report['nodes']} nodes"
    size += f", opset {report['opset']}" if "opset" in report else ""
    found = [("file", report["file"]), ("size", size), ("made in", f"{report['seconds']} s")]
    found += [(f"input {name}", shape) for name, shape in report["inputs"].items()]
    found.append(("outputs", ", ".join(report["outputs"])))
    if "int8" in report:
        off = report["int8"]
        found.append(
            (
                "int8",
                f"logits off by {off['max_relative_error']:.1e}, the same largest one on "
                f"{100 * off['top1_agreement']:.0f} % of {off['images']} images",
            )
        )
    speed = f"{report['milliseconds']} ms for the first images, {report['eager_milliseconds']} in eager mode"
    found.append(("card", report.get("card") or "none: nothing is known of its accuracy"))
    return [*found, ("runs in", f"{report['runtime']}, {report['threads']} threads: {speed}")]
