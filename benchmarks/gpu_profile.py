"""Where a step's time goes on a GPU: its kernels, and for one image the host's share. Used by gpu.py."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Iterator

import torch
from gpu_networks import OURS, THEIRS, Group, build, step_of
from torch.profiler import ProfilerActivity, profile

from ganglion.analysis.timing import seconds_in_turn, wait

PROFILED = ((OURS[0], False), (OURS[2], False), (THEIRS[1], False), (OURS[0], True), (OURS[2], True))
ONE_IMAGE = (OURS[0], OURS[2], *THEIRS[:2])


def kernels(step: Callable[[], None], steps: int = 2) -> tuple[Counter, Counter]:
    """Milliseconds and launches of every kernel in one step."""
    for _ in range(3):
        step()
    wait("cuda")
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as found:
        for _ in range(steps):
            step()
        wait("cuda")
    taken, launches = Counter(), Counter()
    for event in found.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            taken[event.name] += event.device_time / 1e3 / steps
            launches[event.name] += 1
    return taken, Counter({name: n // steps for name, n in launches.items()})


def profiles(device: str, most: int = 25) -> Iterator[tuple[str, list[dict]]]:
    """A title and the longest kernels of one step, for networks of 128 images."""
    for name, train in PROFILED:
        torch.cuda.empty_cache()
        group = Group(names=(name,), batch=128, pixels=224, train=train)
        taken, launches = kernels(step_of(build(name, group, device), group, device))
        total = sum(taken.values())
        title = f"Profile: {name}, {group.title}: {sum(launches.values())} kernels, {total:.2f} ms"
        yield (
            title,
            [
                {"share": ms / total, "ms": ms, "launches": launches[kernel], "kernel": kernel[:120]}
                for kernel, ms in taken.most_common(most)
            ],
        )


def one_image(device: str) -> Iterator[dict]:
    """Eager forward passes of one image: the host against the GPU, and what callers can do about it."""
    gpu = device != "cpu"
    pixels = 224 if gpu else 32
    for name in ONE_IMAGE if gpu else ONE_IMAGE[:1]:
        group = Group(names=(name,), batch=1, pixels=pixels, train=False)
        half = Group(names=(name,), batch=1, pixels=pixels, train=False, half=gpu)
        model = build(name, group, device)
        ways = {"autocast_ms": step_of(model, group, device)}
        row = {"model": name}
        if gpu:
            taken, launches = kernels(ways["autocast_ms"])
            row |= {"kernels": sum(launches.values()), "kernels_ms": sum(taken.values())}
        x = torch.randn(1, 3, pixels, pixels, device=device).contiguous(memory_format=torch.channels_last)
        row["autocast_ms"] = _median(ways["autocast_ms"], device)
        with torch.no_grad(), torch.autocast(device, torch.float16 if gpu else torch.bfloat16):
            row["open_autocast_ms"] = _median(lambda: model(x), device)  # noqa: B023
        row["half_ms"] = _median(step_of(build(name, half, device), half, device), device)
        yield row


def _median(call: Callable[[], object], device: str, samples: int = 15) -> float:
    """Milliseconds of one call, waiting for its end."""
    gpu = device != "cpu"
    times = seconds_in_turn({"": call}, samples if gpu else 1, device, warmup=3 if gpu else 0)[""]
    return 1e3 * statistics.median(times)
