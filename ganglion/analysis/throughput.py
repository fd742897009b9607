"""Speed and memory of networks by VMamba's protocol: one batch on the device, forward passes, networks in turn.

Warm-up passes first, then rounds in which every network runs once, so that what else the machine does meets all of
them. Names of results are those of timm's benchmark.py.
"""

from __future__ import annotations

import copy
import statistics
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from .complexity import activation_memory, complexity


@dataclass(kw_only=True)
class Throughput:
    """One network.

    infer_batch_size: images of a pass; less than asked for where that did not fit. infer_step_time: median, ms.
    out_of_memory: batches that did not fit. seconds: of each round.
    memory: peak MB (2**20 bytes): on a GPU allocated, with the weights of all networks in turn; on a CPU counted,
        activations alone.
    """

    model: str
    infer_img_size: int
    param_count: float
    infer_gmacs: float
    infer_batch_size: int | None = None
    infer_samples_per_sec: float | None = None
    infer_step_time: float | None = None
    spread: tuple[float, float] | None = None
    memory: float | None = None
    out_of_memory: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list, repr=False)


def estimate(name: str, network: nn.Module, img_size: int, batch_size: int) -> Throughput:
    """What is known without running a network: its parameters, FLOPs and the memory of a forward pass.

    network: on any device, "meta" too; memory is counted from shapes and is that of activations alone.
    """
    cost = complexity(network, img_size)
    counted = activation_memory(network, img_size, batch_size=batch_size) / 2**20
    return Throughput(
        model=name,
        infer_img_size=img_size,
        param_count=round(cost.params / 1e6, 2),
        infer_gmacs=round(cost.flops / 1e9, 3),
        infer_batch_size=batch_size,
        memory=counted,
    )


def check_logits(name: str, network: nn.Module, image: Tensor, *, bound: float) -> float:
    """The largest error of a network's logits against its copy in float64, over the largest of those.

    Raises ValueError where it is above the bound, or not a number.
    """
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # float64 is served by a slower backend, as is wanted here
        expected = copy.deepcopy(network).double()(image.double())
        error = ((network(image) - expected).abs().max() / expected.abs().max()).item()
    if not error <= bound:
        raise ValueError(
            f"{name}: its logits differ from float64 by {error:.1e} of the largest, above {bound:g}"
        )
    return error


def throughput(
    networks: Mapping[str, nn.Module], img_size: int, batch_size: int, *, warmup: int = 50, rounds: int = 30
) -> list[Throughput]:
    """Measure networks that are in eval mode on one device, in turn.

    A batch that does not fit is halved, down to one image; a network that does not fit then has no speed.

    Raises ValueError for networks whose logits are wrong, before anything is timed.
    """
    device = next(next(iter(networks.values())).parameters()).device
    images = torch.randn(batch_size, 3, img_size, img_size, device=device)
    for name, network in networks.items():
        check_logits(name, network, images[:1], bound=1e-3 if device.type == "cpu" else 2e-2)
    results = {name: estimate(name, network, img_size, batch_size) for name, network in networks.items()}
    for name, network in networks.items():
        _warm_up(network, images, warmup, results[name])
    for _ in range(rounds):
        for name, network in networks.items():
            if (fitting := results[name].infer_batch_size) is not None:
                results[name].seconds.append(_seconds(network, images[:fitting]))
    for result in results.values():
        if result.infer_batch_size is not None:
            rates = [result.infer_batch_size / s for s in result.seconds]
            result.infer_samples_per_sec = statistics.median(rates)
            result.spread = (min(rates), max(rates))
            result.infer_step_time = 1e3 * statistics.median(result.seconds)
    return list(results.values())


def _warm_up(network: nn.Module, images: Tensor, passes: int, result: Throughput) -> None:
    size: int | None = images.shape[0]
    while size:
        try:
            for _ in range(passes):
                _seconds(network, images[:size])
            if images.is_cuda:
                torch.cuda.reset_peak_memory_stats(images.device)
                _seconds(network, images[:size])
                result.memory = torch.cuda.max_memory_allocated(images.device) / 2**20
            elif result.out_of_memory:
                result.memory = activation_memory(network, result.infer_img_size, batch_size=size) / 2**20
            break
        except (MemoryError, RuntimeError) as error:
            if not isinstance(error, MemoryError) and not any(
                words in str(error) for words in ("out of memory", "allocate memory")
            ):
                raise
            result.out_of_memory.append(size)
            size //= 2
    result.infer_batch_size = size or None
    if not size:
        result.memory = None


def _seconds(network: nn.Module, images: Tensor) -> float:
    if images.is_cuda:
        torch.cuda.synchronize(images.device)
    start = time.perf_counter()
    with torch.no_grad():
        network(images)
    if images.is_cuda:
        torch.cuda.synchronize(images.device)
    return time.perf_counter() - start
