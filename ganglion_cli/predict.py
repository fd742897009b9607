"""What a network says of images, their classes or what is where in them: a table, JSON, or annotated copies."""

from __future__ import annotations

import argparse
import glob
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .common import (
    add_model_arguments,
    add_overwrite,
    check_writable,
    fail,
    fraction,
    load,
    need_extra,
    pick_device,
    positive,
    print_json,
)
from .options import say_loading

if TYPE_CHECKING:
    from ganglion.tasks.loaded_model import LoadedModel

#: Tasks that an option is of.
_TASKS = {
    "top_k": ("classification",),
    "threshold": ("detection",),
    "results": ("detection", "segmentation"),
    "window": ("segmentation",),
    "label_maps": ("segmentation",),
}
#: What stands for standard input.
_STDIN = "-"

_EXAMPLES = """\
examples:
  ganglion predict photo.jpg --model vmamba_tiny_s1l8
  ganglion predict holiday/ --checkpoint runs/one/model --top-k 3 --save annotated
  ganglion predict 'holiday/**/*.jpg' --checkpoint runs/one/model --json
  ganglion predict street/ --checkpoint runs/detector/model --threshold 0.5 --save found --results found.json
  ganglion predict aerial.png --checkpoint runs/segmentor/model --window 512 --label-maps labels --save found
  curl -s https://example.org/photo.jpg | ganglion predict - --checkpoint runs/one/model

exit status: 0; 1 if an image could not be read or the network not be loaded; 2 for arguments that make no sense
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog, parser.formatter_class = _EXAMPLES, argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "paths",
        nargs="+",
        metavar="IMAGE|FOLDER|PATTERN|-",
        help="images; folders with all images below them; patterns with * and **; - for an image on standard input",
    )
    add_model_arguments(parser)
    parser.add_argument("--top-k", type=positive, metavar="K", help="classes for each image (5)")
    parser.add_argument(
        "--threshold",
        type=fraction,
        metavar="X",
        help="of a detector: objects with at least this score (0.3)",
    )
    parser.add_argument(
        "--window",
        type=positive,
        metavar="N",
        help="of a segmentor: read images at full size, in overlapping windows of N x N pixels",
    )
    parser.add_argument("--batch-size", type=positive, default=16, metavar="N", help="images at a time (16)")
    parser.add_argument("--json", action="store_true", help="print a JSON list")
    parser.add_argument(
        "--results",
        type=Path,
        metavar="FILE.json",
        help="of a detector or segmentor: write COCO's format of results here",
    )
    parser.add_argument(
        "--label-maps",
        type=Path,
        metavar="DIR",
        help="of a segmentor: write a PNG for each image whose values are its classes, 0 the first",
    )
    parser.add_argument(
        "--save", type=Path, metavar="DIR", help="write a copy of each image with what was found in it"
    )
    add_overwrite(parser)


def run(args: argparse.Namespace) -> int:
    if args.model is None and args.checkpoint is None:
        args.parser.error("expected --checkpoint, --model or both")
    check_writable(args, "--results")
    paths = [found for path in args.paths for found in _expand(args, path)]

    say_loading("PyTorch and timm")

    from ganglion.errors import shown
    from ganglion.tasks.evaluation import NetworkError
    from ganglion.tasks.prediction import predictions

    device = pick_device(args)
    loaded = load(args)
    options = _options(args, loaded)
    files = _find(args, paths, loaded.data_config["input_size"][0])
    copies = _Copies(args, files, loaded)
    maps = _LabelMaps(args, files)
    loaded.network.to(device)
    names = [shown(file) for file in files]
    width = max(map(len, names))
    if not args.json:
        print(f"{shown(loaded.description)}\n\n{'file':{width}}  {loaded.task.prediction.HEADER}", flush=True)

    report = []
    images = map(copies.image, files)
    entries = predictions(loaded, images, batch_size=args.batch_size, **options)
    try:
        for file, name, entry in zip(files, names, entries, strict=True):
            entry["file"] = name
            report.append(entry)
            if "error" in entry:
                print(f"{name}: skipped: {shown(entry['error'])}", file=sys.stderr)
                continue
            if not args.json:
                _print_entry(name, loaded.task.prediction.lines(entry), width)
            copies.save(file, entry)
            maps.save(file, entry)
    except NetworkError as error:
        fail(args, error)
    if args.results is not None:
        _write_results(args.results, report, loaded)
    if args.json:
        print_json(report)
    elif args.save is not None:
        print(f"\nannotated copies are in {shown(args.save)}")
    return 1 if any("error" in entry for entry in report) else 0


def _options(args: argparse.Namespace, loaded: LoadedModel) -> dict[str, Any]:
    """Those of the network's task. Exits with status 2 where one is of another task."""
    given = {name: value for name in _TASKS if (value := getattr(args, name)) is not None}
    for name in given:
        if loaded.task.name not in _TASKS[name]:
            option, tasks = f"--{name.replace('_', '-')}", " and ".join(_TASKS[name])
            args.parser.error(f"{option} is of {tasks}, and {loaded.name} is of {loaded.task.name}")
    if "window" in given and args.window < 32:
        args.parser.error(f"--window {args.window}: expected at least 32 pixels")
    if "results" in given:
        need_extra(args, "--results", "faster_coco_eval", "detection")
    return {name: value for name, value in given.items() if name not in ("results", "label_maps")}


def _write_results(path: Path, report: Sequence[dict[str, Any]], loaded: LoadedModel) -> None:
    """COCO's format of results, in which an image is known by its file."""
    from ganglion.files import replacing

    results = [
        found for entry in report if "error" not in entry for found in loaded.task.prediction.results(entry)
    ]
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(results))


def _expand(args: argparse.Namespace, path: str) -> list[str]:
    """The path itself, or what the pattern that it is stands for; names that begin with a dot only if it says so."""
    if path == _STDIN and sys.stdin.isatty():
        args.parser.error(
            "-: standard input is a terminal, expected an image: ganglion predict - < photo.jpg"
        )
    if path == _STDIN or os.path.lexists(path):
        return [path]
    # `**` follows links in circles: of several paths to a file the shortest.
    by_length = sorted(glob.glob(path, recursive=True), key=lambda found: (len(found), found))
    found = sorted({os.path.realpath(one): one for one in reversed(by_length)}.values())
    if not found:
        kind = "nothing matches the pattern" if glob.has_magic(path) else "there is no image or folder"
        args.parser.error(f"{kind} {path!r}")
    return found


def _find(args: argparse.Namespace, paths: Sequence[str], channels: int) -> list[str]:
    """The images named, and those below the folders named, each once."""
    from ganglion.data.decode import extensions
    from ganglion.data.files import FolderFiles, without
    from ganglion.errors import shown

    files: list[str] = []
    for path in paths:
        if path == _STDIN or not os.path.isdir(path):
            files.append(path)
            continue
        try:
            below = FolderFiles(path, channels)
        except OSError as error:
            fail(args, f"cannot read {error.filename or path}: {error.strerror}")
        left_out = without(below.left_out)
        if not below.names:
            also = f" ({left_out})" if left_out else ""
            fail(args, f"no images below {path!r}{also}: expected {', '.join(extensions(channels))}")
        if left_out:
            print(f"{shown(path)}: {left_out}", file=sys.stderr)
        files += [below.open(index) for index in range(len(below.names))]
    return list(dict.fromkeys(files))


class _Copies:
    """The copies that --save asks for. An image is read again for its copy, so that none is kept meanwhile."""

    def __init__(self, args: argparse.Namespace, files: Sequence[str], loaded: LoadedModel):
        self._args, self._channels = args, loaded.data_config["input_size"][0]
        self._draw = loaded.task.prediction.draw
        self._stdin: bytes | None = None
        self._targets: dict[str, Path] = {}
        if args.save is None:
            return
        if self._channels not in (1, 3, 4):
            fail(args, f"--save draws images of 1, 3 or 4 channels, the network takes {self._channels}")
        self._targets = _targets(args, "--save", args.save, files, ".predicted.jpg")

    def image(self, file: str) -> str | bytes:
        """What `predictions` is given for a file: its name, or the content of standard input."""
        if file != _STDIN:
            return file
        content = self._stdin if self._stdin is not None else sys.stdin.buffer.read()
        self._stdin = content
        return content

    def save(self, file: str, entry: dict[str, Any]) -> None:
        from PIL.Image import Image

        from ganglion.files import replacing
        from ganglion.tasks.prediction import read

        if (target := self._targets.get(file)) is None:
            return
        image = read(self.image(file), self._channels)
        assert isinstance(image, Image)
        try:
            with replacing(target) as temporary:
                self._draw(image, entry).save(temporary, quality=90)
        except (OSError, ValueError) as error:
            fail(self._args, f"cannot write {str(target)!r}: {getattr(error, 'strerror', None) or error}")


class _LabelMaps:
    """The files that --label-maps asks for."""

    def __init__(self, args: argparse.Namespace, files: Sequence[str]):
        self._args, folder = args, args.label_maps
        self._targets = {} if folder is None else _targets(args, "--label-maps", folder, files, ".png")

    def save(self, file: str, entry: dict[str, Any]) -> None:
        from PIL import Image

        from ganglion.files import replacing
        from ganglion.tasks.segmentation.prediction import label_map

        if (target := self._targets.get(file)) is None:
            return
        try:
            with replacing(target) as temporary:
                Image.fromarray(label_map(entry)).save(temporary)
        except OSError as error:
            fail(self._args, f"cannot write {str(target)!r}: {error.strerror or error}")


def _targets(
    args: argparse.Namespace, option: str, folder: Path, files: Sequence[str], suffix: str
) -> dict[str, Path]:
    """Each file's own in a folder, which is made. Exits where one is there already."""
    targets = dict(zip(files, _free_names(files, folder, suffix), strict=True))
    there = [target for target in targets.values() if os.path.lexists(target)]
    if there and not args.overwrite:
        fail(
            args,
            f"{option} {folder}: {there[0].name} is there already. Expected another folder, or --overwrite",
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        fail(args, f"{option} {folder}: {error.strerror}")
    return targets


def _free_names(files: Sequence[str], folder: Path, suffix: str) -> list[Path]:
    """Where to save what is of each file: its name with the suffix, numbered where two would be one or an input."""
    taken = {os.path.realpath(file) for file in files}
    names = []
    for file in files:
        stem = "stdin" if file == _STDIN else Path(file).stem
        target, number = folder / f"{stem}{suffix}", 2
        while os.path.realpath(target) in taken:
            target, number = folder / f"{stem}.{number}{suffix}", number + 1
        taken.add(os.path.realpath(target))
        names.append(target)
    return names


def _print_entry(file: str, lines: Sequence[str], width: int) -> None:
    for line in lines:
        print(f"{file:{width}}  {line}", flush=True)
        file = ""
