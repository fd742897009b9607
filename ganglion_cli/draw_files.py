"""What `ganglion draw` opens and writes: networks, images, and a picture with its numbers beside it."""

from __future__ import annotations

import argparse
import os
import random
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from .common import check_writable, fail, need_extra, pick_device, write_csv

if TYPE_CHECKING:
    import torch
    from matplotlib.figure import Figure
    from torch import Tensor, nn

T = TypeVar("T")

FORMATS = (".png", ".svg", ".pdf")


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """A network to be drawn.

    label: what the picture calls it. weights: which it has, in words. size, mean, std: of its images.
    """

    label: str
    weights: str
    network: nn.Module
    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]


def open_network(args: argparse.Namespace, source: str, untrained: bool) -> Drawn:
    """A network from NAME, FILE, FOLDER or NAME=FILE. Exits with status 1 where it cannot be loaded.

    untrained: of the same kind, with weights as initialised from --seed.
    """
    import timm
    import torch
    from timm.data import resolve_model_data_config

    from ganglion.errors import shown, unknown
    from ganglion.tasks.loaded_model import load_model

    name, equals, file = source.partition("=")
    named = bool(equals) and not os.path.lexists(source)
    torch.manual_seed(args.seed)
    try:
        if untrained and not named and not os.path.lexists(source):
            if not timm.is_model(source):
                raise ValueError(unknown("model", source, timm.list_models()))
            network = timm.create_model(source).eval()
            config = resolve_model_data_config(network)
            label, weights = source, f"untrained (seed {args.seed})"
        else:
            loaded = load_model(file, model=name) if named else load_model(source)
            network, config = loaded.network, loaded.data_config
            label, weights = loaded.name, shown(loaded.description.rpartition(" from ")[2])
            if untrained:
                network = _initialised(network, loaded.name, file if named else source)
                weights = f"untrained (seed {args.seed})"
    except (ValueError, OSError) as error:
        hint = "" if untrained or "published weights" not in str(error) else " (NAME=FILE), or --untrained"
        fail(args, f"{error}{hint}")
    height, width = config["input_size"][1:]
    return Drawn(
        label=label,
        weights=weights,
        network=network.to(pick_device(args)),
        size=(height, width),
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
    )


def _initialised(network: nn.Module, name: str, source: str) -> nn.Module:
    """A network of the shapes of another, as initialised. Raises ValueError where it cannot be built again."""
    import timm

    whole: Any = network
    folder = os.path.isdir(os.path.expanduser(source))
    made = (
        timm.create_model(f"local-dir:{os.path.expanduser(source)}", pretrained=False)
        if folder
        else timm.create_model(name, num_classes=whole.num_classes)
    )
    shapes = {key: value.shape for key, value in network.state_dict().items()}
    if {key: value.shape for key, value in made.state_dict().items()} != shapes:
        raise ValueError(f"cannot build {name} as {source!r} has it untrained: expected its exported folder")
    return made.eval()


def fit_size(args: argparse.Namespace, drawn: Drawn) -> tuple[int, int]:
    """The size of the images, of --size or the network's own. timm's networks of one size are set to it."""
    size = drawn.size if args.size is None else (args.size[0], args.size[-1])
    network: Any = drawn.network
    if size != drawn.size and hasattr(network, "set_input_size"):
        try:
            network.set_input_size(img_size=size)
        except (AssertionError, ValueError, RuntimeError) as error:
            fail(args, f"{drawn.label} does not take images of {size[0]} x {size[1]}: {error}")
    return size


def find_images(args: argparse.Namespace) -> list[str]:
    """The files that --images names, at most --max-images of them, chosen by --seed. Exits with status 1 if none."""
    from ganglion.data.decode import extensions
    from ganglion.data.files import FolderFiles
    from ganglion.errors import shown

    found: list[str] = []
    for path in args.images:
        if not os.path.lexists(path):
            args.parser.error(f"--images {path}: there is no such file or folder")
        if not os.path.isdir(path):
            found.append(path)
            continue
        try:
            below = FolderFiles(path, 3)
        except OSError as error:
            fail(args, f"cannot read {error.filename or path}: {error.strerror}")
        if not below.names:
            fail(args, f"no images below {shown(path)!r}: expected {', '.join(extensions(3))}")
        found += [below.open(i) for i in range(len(below.names))]
    if len(found) > args.max_images:
        found = sorted(random.Random(args.seed).sample(found, args.max_images))
    return found


def read_images(args: argparse.Namespace, files: list[str], size: tuple[int, int]) -> Iterator[Any]:
    """The images as Pillow has them, resized whole to `size`. What cannot be read is said, and taken out of `files`.

    Exits with status 1 if nothing is left.
    """
    from PIL import Image

    from ganglion.data import UnreadableImage
    from ganglion.errors import shown
    from ganglion.tasks.prediction import read

    for file in list(files):
        try:
            image: Any = read(file, 3)
        except (UnreadableImage, OSError) as error:
            if len(files) == 1:
                fail(args, f"{file}: {error}")
            print(f"{shown(file)}: skipped: {shown(error)}", file=sys.stderr)
            files.remove(file)
            continue
        yield image.resize((size[1], size[0]), Image.Resampling.BICUBIC)


def as_input(drawn: Drawn, image: Any, dtype: torch.dtype) -> Tensor:
    """(1, 3, H, W), normalised as the network expects."""
    import numpy as np
    import torch

    values = torch.from_numpy(np.asarray(image, dtype=np.float32) / 255).permute(2, 0, 1)
    mean, std = (torch.tensor(v, dtype=torch.float32)[:, None, None] for v in (drawn.mean, drawn.std))
    device = next(drawn.network.parameters()).device
    return ((values - mean) / std)[None].to(device, dtype)


def in_batches(items: Iterable[Tensor], size: int) -> Iterator[Tensor]:
    """(1, ...) each -> (size, ...), the last one smaller."""
    import torch

    batch: list[Tensor] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield torch.cat(batch)
            batch = []
    if batch:
        yield torch.cat(batch)


class Counter:
    """How far it is, on stderr: one line that changes on a terminal, else a line every 10 seconds."""

    def __init__(self, total: int):
        self._total, self._done = total, 0
        self._terminal = sys.stderr.isatty()
        self._start = self._shown = time.monotonic()

    def over(self, items: Iterable[T], title: str) -> Iterator[T]:
        """The items. One counts as done when the next is asked for."""
        for item in items:
            yield item
            self._done += 1
            now = time.monotonic()
            if now - self._shown < (0.2 if self._terminal else 10):
                continue
            self._shown = now
            each = (now - self._start) / self._done
            left = timedelta(seconds=round(each * max(self._total - self._done, 0)))
            text = f"{title}: {self._done}/{self._total} images, {each:.2f} s each, {left} left"
            end = "" if self._terminal else "\n"
            print(f"\r{text}\x1b[K" if self._terminal else text, end=end, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Leave the terminal's line empty for what comes."""
        if self._terminal:
            print("\r\x1b[K", end="", file=sys.stderr)


def add_output(parser: argparse.ArgumentParser) -> None:
    """Where the picture goes."""
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        metavar="FILE",
        help="the picture (.png, .svg, .pdf); the numbers go beside it, as .npz and .csv",
    )
    parser.add_argument("--overwrite", action="store_true", help="write over files that are there already")


def check_output(args: argparse.Namespace) -> None:
    """Exit with status 2, before anything is computed, unless the picture and what goes beside it can be written."""
    if args.output.suffix not in FORMATS:
        args.parser.error(f"--output {args.output}: expected a name that ends in {', '.join(FORMATS)}")
    need_extra(args, "draw", "matplotlib", "viz")
    check_writable(args, "--output")
    for suffix in (".npz", ".csv"):
        beside = args.output.with_suffix(suffix)
        if os.path.lexists(beside) and not args.overwrite:
            args.parser.error(
                f"--output {args.output}: {beside.name} is there already. Expected another name, or --overwrite"
            )


def write(
    args: argparse.Namespace,
    figure: Figure,
    arrays: Mapping[str, Any],
    rows: Sequence[Mapping[str, object]],
    caption: str,
) -> None:
    """The picture, its arrays (with the caption among them) and its table.

    Exits with status 1 where they cannot be written.
    """
    import numpy as np

    from ganglion.errors import shown
    from ganglion.files import replacing

    try:
        with replacing(args.output) as temporary:
            figure.savefig(temporary, metadata=_metadata(args.output.suffix))
        if arrays:
            with replacing(args.output.with_suffix(".npz")) as temporary, open(temporary, "wb") as file:
                np.savez_compressed(file, caption=np.array(caption), **arrays)
        if rows:
            write_csv(args.output.with_suffix(".csv"), rows)
    except OSError as error:
        fail(args, f"cannot write {str(args.output)!r}: {error.strerror or error}")
    beside = [s for s, there in ((".npz", arrays), (".csv", rows)) if there]
    print(
        f"{shown(args.output)}" + (f", and {' and '.join(beside)} beside it" if beside else "") + "\n",
        flush=True,
    )


def _metadata(suffix: str) -> dict[str, Any]:
    """No date, so that the same numbers give the same file."""
    return {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(suffix, {})
