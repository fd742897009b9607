"""How good a trained network is on labelled images, and how fast, at one size or at many."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import details
from .common import (
    ProgressLine,
    add_model_arguments,
    add_overwrite,
    as_text,
    check_writable,
    fail,
    fraction,
    load,
    natural,
    need_extra,
    pick_device,
    pixels,
    positive,
    print_json,
    titled,
    write_csv,
)
from .details import details_of
from .objects import check_folder
from .options import say_loading
from .sizes import over_sizes, record

if TYPE_CHECKING:
    import torch

    from ganglion.data import ImageSource, Unreadable
    from ganglion.tasks.evaluation import Labelled, Result
    from ganglion.tasks.loaded_model import LoadedModel
    from ganglion.training.metrics import Metric

#: What fields of a recipe are called here.
_OPTIONS = {
    "data.val_labels": "--labels",
    "data.class_map": "--class-map",
    "data.class_file": "--class-map",
    "data.reader": "--data-reader",
    "data.workers": "--workers",
    "model.num_classes": "number of classes of the network",
}

_EXAMPLES = """\
examples:
  ganglion validate --checkpoint runs/one/model --data images
  ganglion validate --checkpoint runs/one/model --data images --per-class classes.csv --plot confusion.png
  ganglion validate --model vmamba_tiny_s2l5 --checkpoint vssm_tiny.pth --data imagenet \\
      --sizes 224,384,512,640,768,1024 --output sizes.csv --plot sizes.png
  ganglion validate --checkpoint runs/detector/model --data coco --per-class classes.csv --plot curves.png \\
      --worst missed --predictions results.json

exit status: 0; 1 if it could not be measured or the output is not finite; 2 for arguments that make no sense
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog, parser.formatter_class = _EXAMPLES, argparse.RawDescriptionHelpFormatter
    add_model_arguments(parser)
    data = parser.add_argument_group("data")
    data.add_argument(
        "--data",
        required=True,
        metavar="DIR",
        help="folder with a folder for each class, or with one of those for each split; of a detector as COCO's; of a "
        "segmentor with images/ and annotations/ or masks/",
    )
    data.add_argument(
        "--split", metavar="NAME", help="which images (validation, or DIR itself where it has no splits)"
    )
    data.add_argument(
        "--data-reader",
        "--data-name",  # as it was called
        dest="data_reader",
        default="",
        metavar="NAME",
        help="timm's reader of another kind of data, e.g. wds/, hfds/NAME",
    )
    data.add_argument(
        "--class-map",
        metavar="FILE",
        help="names of the classes in the order of the model's outputs; of masks, in the order of their labels",
    )
    data.add_argument(
        "--labels",
        metavar="FILE",
        help="classes of images that lie in no class folders: CSV, or a line to an image",
    )
    data.add_argument(
        "--by-number",
        action="store_true",
        help="take labels for indices of the model's outputs, whatever the classes' names are",
    )
    data.add_argument("--limit", type=positive, metavar="N", help="at most N images")
    data.add_argument(
        "--batch-size",
        type=positive,
        metavar="N",
        help="images at a time (64, of detectors and segmentors 1)",
    )
    data.add_argument("--workers", type=natural, metavar="N", help="processes that read images (up to 4)")
    size = parser.add_argument_group("image size")
    size.add_argument("--img-size", type=pixels, metavar="N", help="side in pixels (the model's)")
    size.add_argument(
        "--crop-pct",
        type=fraction,
        metavar="X",
        help="resize to size / X, then crop the centre (the model's)",
    )
    size.add_argument(
        "--sizes", type=_sizes, metavar="N,N,...", help="a table over sizes, e.g. 224,384,512,640,768,1024"
    )
    size.add_argument(
        "--tta",
        action="store_true",
        help="test-time augmentation: several scales, and mirrored; not of classifiers",
    )
    speed = parser.add_argument_group("speed")
    speed.add_argument(
        "--amp", choices=("none", "bf16", "fp16"), default="none", help="mixed precision (none)"
    )
    speed.add_argument(
        "--channels-last", action="store_true", help="keep images and weights in channels-last memory"
    )
    output = parser.add_argument_group("output")
    output.add_argument("--json", action="store_true", help="print JSON")
    output.add_argument("--output", type=Path, metavar="FILE.csv", help="also write the numbers here")
    output.add_argument("--per-class", type=Path, metavar="FILE.csv", help="write a row for each class")
    output.add_argument(
        "--predictions",
        type=Path,
        metavar="FILE",
        help="write label and prediction of each image (.csv), of a detector COCO's results, of a segmentor label maps "
        "as run lengths (.json)",
    )
    output.add_argument(
        "--plot",
        type=Path,
        metavar="FILE.png",
        help="draw the confusion matrix, of a detector also precision over recall, with --sizes what they measure "
        "(.png, .svg, .pdf)",
    )
    output.add_argument(
        "--worst",
        type=Path,
        metavar="DIR",
        help="write the images with the most missed objects, of a segmentor with the lowest mean IoU",
    )
    add_overwrite(output)


def _sizes(text: str) -> list[int]:
    return [pixels(part.strip()) for part in text.split(",")]


def run(args: argparse.Namespace) -> int:
    _check(args)

    say_loading("PyTorch and timm")

    from ganglion.data import DataError
    from ganglion.errors import shown
    from ganglion.tasks.evaluation import NetworkError

    device = pick_device(args)
    loaded = load(args)
    details.check(args, loaded)
    if args.crop_pct is not None:
        loaded = replace(loaded, data_config=loaded.data_config | {"crop_pct": args.crop_pct})
    try:
        labelled = _open(args, loaded)
    except (ValueError, OSError) as error:
        fail(args, _as_written(error))
    about = {
        "model": loaded.name,
        "checkpoint": args.checkpoint and shown(args.checkpoint),
        "data": shown(args.data),
        "split": args.split or "validation",
        "crop_pct": loaded.data_config.get("crop_pct"),
        "tta": labelled.augmented.description if args.tta and labelled.augmented else None,
        "amp": args.amp,
        "device": str(device),
    }
    if not args.json:
        crop = "" if about["crop_pct"] is None else f", crop_pct {about['crop_pct']:g}"
        crop += f", {about['tta']}" if args.tta else ""
        print(shown(loaded.description))
        print(f"{len(labelled.source)} images of {about['data']} ({about['split']}){crop}\n", flush=True)
    measure = _measure(args, loaded, labelled, device)
    try:
        found = (over_sizes if args.sizes else _at_one_size)(args, loaded, labelled.source, measure)
    except (DataError, OSError, NetworkError) as error:
        fail(args, _as_written(error))
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        fail(args, f"{str(error).partition(chr(10))[0]}: out of memory, perhaps; expected fewer --workers")
    return _report(args, about, **found)


def _report(
    args: argparse.Namespace,
    about: dict[str, Any],
    *,
    records: list[dict[str, Any]],
    unreadable: Sequence[Unreadable],
    errors: dict[str, Any] | None = None,
) -> int:
    """Print the rest: all of it as JSON, or what could not be used. Returns the exit status."""
    from ganglion.errors import shown

    listed = [{"name": shown(b.name), "reason": shown(b.reason)} for b in unreadable]
    if args.json:
        print_json(about | {"results": records, "unreadable": listed} | (errors or {}))
    elif listed:
        print(f"\n{len(listed)} images could not be read, and are not counted")
        for entry in listed:
            print(f"  {entry['name']}: {entry['reason']}")
    worst = max(records, key=lambda record: record["not_finite"])
    if worst["not_finite"]:
        print(
            f"{args.parser.prog}: error: the network's output is not finite (NaN or infinite) for "
            f"{worst['not_finite']} of {worst['images']} images, which count as wrong",
            file=sys.stderr,
        )
        return 1
    return 0


def _check(args: argparse.Namespace) -> None:
    """What can be seen to be wrong before anything is loaded."""
    if args.model is None and args.checkpoint is None:
        args.parser.error("expected --checkpoint, --model or both")
    if args.sizes and args.img_size:
        args.parser.error("expected --img-size or --sizes, not both")
    for option in ("--per-class", "--predictions", "--worst", "--tta"):
        if args.sizes and getattr(args, option[2:].replace("-", "_")):
            args.parser.error(f"{option} is of one image size: expected --img-size, not --sizes")
    if args.by_number and args.class_map:
        args.parser.error("expected --class-map or --by-number, not both")
    if args.plot is not None:
        if args.plot.suffix not in (".png", ".svg", ".pdf"):
            args.parser.error(f"--plot {args.plot}: expected a name that ends in .png, .svg or .pdf")
        need_extra(args, "--plot", "matplotlib", "viz")
    check_writable(args, "--output", "--per-class", "--predictions", "--plot")
    check_folder(args)


def _open(args: argparse.Namespace, loaded: LoadedModel) -> Labelled:
    from ganglion.data import IndexedSource
    from ganglion.tasks.evaluation import Request

    request = Request(
        root=args.data,
        split=args.split,
        reader=args.data_reader,
        class_map=args.class_map,
        labels=args.labels,
        by_number=args.by_number,
        limit=args.limit,
    )
    found = loaded.task.metrics.labelled(loaded, request)
    if found.source.note:
        print(found.source.note, file=sys.stderr)
    if args.predictions is not None and not isinstance(found.source, IndexedSource):
        raise ValueError("--predictions names each image, and those of a stream have no fixed order")
    if args.tta and found.augmented is None:
        raise ValueError(
            f"--tta: {loaded.name} is of {loaded.task.name}, which has no test-time augmentation"
        )
    if found.warning:
        print(f"warning: {found.warning}", file=sys.stderr)
    return found


def _as_written(error: Exception) -> str:
    """An error of the data, which names the fields of a recipe, with this command's options."""
    text = str(error)
    for field, option in _OPTIONS.items():
        text = text.replace(field, option)
    return text


def _measure(
    args: argparse.Namespace,
    loaded: LoadedModel,
    labelled: Labelled,
    device: torch.device,
) -> Callable[..., Result]:
    """From the side of the images, None for the network's own, and further metrics to accuracy and speed."""
    import torch

    from ganglion.data import Processes, eval_loader
    from ganglion.tasks.evaluation import evaluate

    amp = {"none": None, "bf16": torch.bfloat16, "fp16": torch.float16}[args.amp]
    memory_format = torch.channels_last if args.channels_last else torch.preserve_format
    network: Any = loaded.network  # torch types no memory_format beside a device
    network.to(device, memory_format=memory_format)
    augmented = labelled.augmented if args.tta else None
    workers = min(4, os.cpu_count() or 1) if args.workers is None else args.workers

    def measure(size: int | None, also: Sequence[Metric] = ()) -> Result:
        loader = eval_loader(
            labelled.source,
            labelled.transform(size) if augmented is None else augmented.transform,
            batch_size=args.batch_size or labelled.batch_size,
            processes=Processes(workers=workers),
            pin_memory=device.type == "cuda",
            collate=labelled.collate,
        )
        monitor, _ = loaded.task.metrics.MONITOR
        title = f"size {size}: " if args.sizes else ""
        with closing(ProgressLine(len(labelled.source), monitor, title)) as progress:
            result = evaluate(
                loaded.network if augmented is None else augmented.network(size),
                loader,
                labelled.metrics(),
                device=device,
                amp=amp,
                channels_last=args.channels_last,
                also=also,
                progress=progress,
            )
        if not result.images:
            first = (
                f": {result.unreadable[0].name}: {result.unreadable[0].reason}" if result.unreadable else ""
            )
            fail(args, f"none of {len(labelled.source)} images could be read{first}")
        return result

    return measure


def _at_one_size(
    args: argparse.Namespace, loaded: LoadedModel, source: ImageSource, measure: Callable[..., Result]
) -> dict[str, Any]:
    made = details_of(loaded.task.name)
    single = None if made is None else made(loaded, source)
    result = measure(args.img_size, [] if single is None else single.also)
    size = args.img_size or " x ".join(map(str, loaded.data_config["input_size"][1:]))
    records = [record(size, result)]
    if not args.json:
        print(f"  size       {size}")
        width = max(9, *(len(titled(result.title(name))[0]) for name in result.values))
        for name, value in result.values.items():
            title, unit = titled(result.title(name))
            print(f"  {title:<{width}}  {as_text(name, value)}{unit}")
        print(
            f"  {'images':<{width}}  {result.images}"
            + (f", {result.skipped} skipped" if result.skipped else "")
        )
        print(f"  {'images/s':<{width}}  {result.images_per_second:.1f}, reading included")
    if args.output is not None:
        write_csv(args.output, records)
    if single is None:
        return {"records": records, "unreadable": result.unreadable}
    single.finish(result)
    if not args.json:
        single.show()
    single.write(args, f"{loaded.name} on {args.data}")
    return {"records": records, "unreadable": result.unreadable, "errors": single.summary()}
