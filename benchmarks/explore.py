"""What `ganglion explore` costs beside one forward pass of its network, beyond start-up.

    OMP_NUM_THREADS=1 python benchmarks/explore.py [NETWORK ...] [--rounds 7]

One image of 224 x 224, from its pixels to the page's text, with and without receptive fields. Processor time, all in
turn in one process, medians of the ratios of the rounds. "forward" is inference as `timm.create_model(...).eval()` runs
it; "recording" the pass of a page without fields; "backward" the gradients of the receptive fields alone, one pass from
each stage. Before anything is timed, a receptive field of the page is compared with `effective_receptive_field`.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from timm.data import resolve_model_data_config

sys.path[:0] = [str(Path(__file__).parents[1])]

from benchmarks._networks import paired_ratio, settings
from ganglion.analysis import effective_receptive_field
from ganglion.analysis.scans import as_analysed, recorded
from ganglion.analysis.timing import seconds_in_turn
from ganglion.data import eval_transform
from ganglion.explorer import explore, page_of
from ganglion.tasks import DEFAULT, find_task
from ganglion.tasks.loaded_model import LoadedModel

SIZE = (224, 224)


def measure(name: str, rounds: int) -> None:
    torch.manual_seed(0)
    network = timm.create_model(name).eval()
    config = resolve_model_data_config(network) | {"input_size": (3, *SIZE)}
    model = LoadedModel(
        name=name, network=network, data_config=config, class_names=None, description="untrained (seed 0)",
        task=find_task(DEFAULT),
    )  # fmt: skip
    coarse = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8))
    image = coarse.resize((256, 256), Image.Resampling.BICUBIC)
    x = eval_transform(config)(image)[None]
    check(model, image, x)

    def forward() -> None:
        with torch.no_grad():
            network(x)

    def recording() -> None:
        with torch.no_grad(), recorded(network):
            network(x)

    def page(fields: bool) -> None:
        page_of(explore(model, [image], size=SIZE, fields=fields))

    graph = x.clone().requires_grad_()
    with as_analysed(network, torch.float32):
        maps, y = [], network.pos_embed(network.stem(graph))
        for stage in network.stages:
            maps.append(y := stage(y))

    def backward() -> None:
        for features in maps:
            centre = features[0, :, features.shape[2] // 2, features.shape[3] // 2]
            torch.autograd.grad(centre.relu().sum(), graph, retain_graph=True)

    steps = {
        "forward": forward,
        "recording": recording,
        "backward": backward,
        "explore --no-fields": lambda: page(False),
        "explore": lambda: page(True),
    }
    seconds = seconds_in_turn(steps, rounds, clock=time.process_time)
    ratios = {step: paired_ratio(of_step, seconds["forward"]) for step, of_step in seconds.items()}
    cells = [
        f"{step} {median:.2f} ({least:.2f} to {most:.2f})" for step, (median, least, most) in ratios.items()
    ]
    print(f"{name}: {', '.join(cells)}")


def check(model: LoadedModel, image: Image.Image, x: torch.Tensor) -> None:
    """Raise unless the last stage's receptive field on the page has the largest value that Python finds."""
    found = explore(model, [image], size=SIZE)["images"][0]["fields"][-1]["largest"]
    expected = float(effective_receptive_field(model.network, x).max())
    if not abs(found - expected) <= 1e-5 * expected:
        raise SystemExit(f"the page says {found}, Python {expected}: nothing was timed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*", default=["vmamba_nano", "vmamba_tiny_s1l8"])
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    print(settings(rounds=args.rounds))
    for name in args.networks:
        measure(name, args.rounds)


if __name__ == "__main__":
    main()
