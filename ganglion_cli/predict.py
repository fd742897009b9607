"""The most probable classes of pictures: a table, JSON, or annotated copies."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .annotate import annotate, free_names
from .common import add_model_arguments, fail, pick_device, positive

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

    from ganglion.tasks.loading import LoadedModel


_EXAMPLES = """\
examples:
  ganglion predict photo.jpg --model vmamba_tiny_s1l8
  ganglion predict holiday/ --checkpoint runs/one/model --top-k 3 --save annotated
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog, parser.formatter_class = _EXAMPLES, argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "paths",
        nargs="+",
        type=Path,
        metavar="IMAGE|FOLDER",
        help="pictures; folders with all that is below them",
    )
    add_model_arguments(parser)
    parser.add_argument("--top-k", type=positive, default=5, metavar="K", help="classes for each picture (5)")
    parser.add_argument(
        "--batch-size", type=positive, default=16, metavar="N", help="pictures at a time (16)"
    )
    parser.add_argument("--json", action="store_true", help="print a JSON list")
    parser.add_argument(
        "--save", type=Path, metavar="DIR", help="write a copy of each picture with its classes beneath it"
    )


def run(args: argparse.Namespace) -> int:
    if args.model is None and args.checkpoint is None:
        args.parser.error("expected --checkpoint, --model or both")
    for path in args.paths:
        if not path.exists():
            args.parser.error(f"there is no picture or folder {str(path)!r}")

    from ganglion.tasks.loading import load_model

    files = _find(args)
    device = pick_device(args)
    try:
        if args.save is not None:
            args.save.mkdir(parents=True, exist_ok=True)
        loaded = load_model(args.model, args.checkpoint)
    except (ValueError, OSError) as error:
        fail(args, error)
    loaded.network.to(device)
    targets = free_names(files, args.save) if args.save is not None else [None] * len(files)
    names = [str(file) for file in files]
    width = max(map(len, names))
    if not args.json:
        print(f"{loaded.description}\n\n{'file':{width}}  rank  probability  class")

    report = []
    for (picture, entry), target in zip(_predict(args, loaded, files, device), targets, strict=True):
        report.append(entry)
        if picture is None:
            print(f"{entry['file']}: skipped: {entry['error']}", file=sys.stderr)
            continue
        if not args.json:
            _print_entry(entry, width)
        if target is not None:
            try:
                annotate(picture, [(p["name"], p["probability"]) for p in entry["predictions"]]).save(
                    target, quality=90
                )
            except OSError as error:
                fail(args, f"cannot write {str(target)!r}: {error.strerror or error}")
    if args.json:
        print(json.dumps(report, indent=2))
    elif args.save is not None:
        print(f"\nannotated copies are in {args.save}")
    return 1 if any("error" in entry for entry in report) else 0


def _find(args: argparse.Namespace) -> list[Path]:
    """The pictures named, and those below the folders named, each once and in the order of their names."""
    from ganglion.data.decode import extensions

    suffixes = set(extensions(3))
    files: list[Path] = []
    for path in args.paths:
        if path.is_dir():
            below = sorted(p for p in path.rglob("*") if p.suffix.lower() in suffixes and p.is_file())
            if not below:
                args.parser.error(f"no pictures ({', '.join(sorted(suffixes))}) below {str(path)!r}")
            files += below
        else:
            files.append(path)
    return list(dict.fromkeys(files))


def _predict(
    args: argparse.Namespace, loaded: LoadedModel, files: Sequence[Path], device: torch.device
) -> Iterator[tuple[Image | None, dict[str, Any]]]:
    """Each picture as it was decoded, None if it cannot be, and its entry in the report."""
    import torch

    from ganglion.data import eval_transform
    from ganglion.data.decode import BrokenImage, open_image

    transform = eval_transform(loaded.data_config)
    channels = loaded.data_config["input_size"][0]
    names, labels = loaded.readable_names(), loaded.class_names
    for start in range(0, len(files), args.batch_size):
        opened: list[Image | BrokenImage] = []
        for file in files[start : start + args.batch_size]:
            try:
                opened.append(open_image(file, channels=channels))
            except BrokenImage as error:
                opened.append(error)
        pictures = [picture for picture in opened if not isinstance(picture, BrokenImage)]
        ranked: Iterator[tuple[list[float], list[int]]] = iter(())
        if pictures:
            with torch.inference_mode():
                logits_BC = loaded.network(torch.stack([transform(p) for p in pictures]).to(device))
                top = logits_BC.float().softmax(dim=1).topk(min(args.top_k, len(names)), dim=1)
            ranked = zip(top.values.tolist(), top.indices.tolist(), strict=True)
        for file, picture in zip(files[start : start + args.batch_size], opened, strict=True):
            if isinstance(picture, BrokenImage):
                yield None, {"file": str(file), "error": str(picture)}
                continue
            predictions = [
                {
                    "rank": rank,
                    "index": index,
                    "label": labels[index] if labels is not None else None,
                    "name": names[index],
                    "probability": probability,
                }
                for rank, (probability, index) in enumerate(zip(*next(ranked), strict=True), start=1)
            ]
            yield picture, {"file": str(file), "predictions": predictions}


def _print_entry(entry: dict[str, Any], width: int) -> None:
    file = entry["file"]
    for p in entry["predictions"]:
        print(f"{file:{width}}  {p['rank']:>4}  {100 * p['probability']:>9.2f} %  {p['name']}")
        file = ""
