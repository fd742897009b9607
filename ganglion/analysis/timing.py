"""How a step is timed: what `ganglion bench` and the programs under benchmarks/ share.

A step is a callable without arguments. On a GPU a clock is read when the device has nothing left to do; steps of
several networks run in turn, so that what else the machine does meets all of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Step = Callable[[], object]


def inference(run: Callable[[Tensor], Any], images: Tensor, *, amp: bool = False) -> None:
    """A forward pass without gradients. run: the network, or what computes its output (a compiled one).

    amp: under autocast, of float16 on a GPU and bfloat16 on a CPU.
    """
    with torch.no_grad(), _autocast(images, amp):
        run(images)


def training(
    network: nn.Module, images: Tensor, *, amp: bool = False, run: Callable[[Tensor], Tensor] | None = None
) -> None:
    """A forward pass, cross entropy and a backward pass in the network's mode; no optimizer. No gradients are left.

    amp, run: of `inference`; the network itself if None.
    """
    targets = torch.arange(images.shape[0], device=images.device) % 2
    with _autocast(images, amp):
        logits = (run or network)(images)
    F.cross_entropy(logits.float(), targets).backward()
    network.zero_grad(set_to_none=True)


def seconds(
    step: Step,
    device: torch.device | str = "cpu",
    *,
    repeats: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Seconds of a step, the mean of some in a row."""
    wait(device)
    start = clock()
    for _ in range(repeats):
        step()
    wait(device)
    return (clock() - start) / repeats


def seconds_in_turn(
    steps: Mapping[Any, Step],
    rounds: int,
    device: torch.device | str = "cpu",
    *,
    warmup: int = 1,
    repeats: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[Any, list[float]]:
    """Seconds of each step by its name, all run once in every round. The first rounds, `warmup`, do not count."""
    found: dict[Any, list[float]] = {name: [] for name in steps}
    for turn in range(warmup + rounds):
        for name, step in steps.items():
            taken = seconds(step, device, repeats=repeats, clock=clock)
            if turn >= warmup:
                found[name].append(taken)
    return found


def peak_memory(step: Step, device: torch.device | str) -> int:
    """Bytes allocated on a GPU at the peak of a step, what was there before included."""
    torch.cuda.reset_peak_memory_stats(device)
    step()
    wait(device)
    return torch.cuda.max_memory_allocated(device)


def wait(device: torch.device | str) -> None:
    """Until a GPU has nothing left to do."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def _autocast(images: Tensor, amp: bool) -> torch.autocast:
    half = torch.float16 if images.is_cuda else torch.bfloat16
    return torch.autocast(images.device.type, half, enabled=amp)
