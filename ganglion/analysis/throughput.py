"""Speed and memory of networks by VMamba's protocol: one batch on the device, forward passes, networks in turn.

Warm-up passes first, one network at a time on the device, which is when memory is measured; then rounds in which every
network runs once, so that what else the machine does meets all of them. Names of results are those of timm's
benchmark.py.
"""

from __future__ import annotations

import contextlib
import copy
import statistics
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from .complexity import activation_memory, complexity
from .timing import Step, inference, peak_memory, seconds_in_turn, training


@dataclass(kw_only=True)
class Throughput:
    """One network at one size.

    infer_batch_size: images of a pass; less than asked for where that did not fit. infer_step_time: median, ms.
    infer_spread: least and most images per second of a round. infer_gmacs: of one image. param_count: millions.
    train_*: the same of a training step: forward, cross entropy and backward, no optimizer.
    memory, train_memory: peak MB (2**20 bytes): on a GPU allocated, with this network alone; on a CPU counted,
        activations alone. out_of_memory: batches that did not fit, "train 64" those of training.
    """

    model: str
    infer_img_size: int
    param_count: float
    infer_gmacs: float
    infer_batch_size: int | None = None
    infer_samples_per_sec: float | None = None
    infer_step_time: float | None = None
    infer_spread: tuple[float, float] | None = None
    memory: float | None = None
    train_batch_size: int | None = None
    train_samples_per_sec: float | None = None
    train_step_time: float | None = None
    train_spread: tuple[float, float] | None = None
    train_memory: float | None = None
    out_of_memory: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list, repr=False)
    train_seconds: list[float] = field(default_factory=list, repr=False)


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
    networks: Mapping[str, nn.Module],
    img_size: int,
    batch_size: int | Mapping[str, int],
    *,
    warmup: int = 50,
    rounds: int = 30,
    infer: bool = True,
    train: bool = False,
    amp: bool = False,
    device: torch.device | str = "cpu",
) -> list[Throughput]:
    """Measure networks in eval mode, in turn. They end on the CPU.

    batch_size: of all, or of each. infer, train: what is measured. amp: under autocast, of float16 on a GPU and
    bfloat16 on a CPU.

    A batch that does not fit is halved, down to one image; a network that does not fit then has no speed.

    Raises ValueError for networks whose logits are wrong, before anything is timed.
    """
    device = torch.device(device)
    batches = {n: batch_size if isinstance(batch_size, int) else batch_size[n] for n in networks}
    images = torch.randn(max(batches.values()), 3, img_size, img_size, device=device)
    results = {name: estimate(name, network, img_size, batches[name]) for name, network in networks.items()}
    kinds = [kind for kind, wanted in (("infer", infer), ("train", train)) if wanted]
    for name, network in networks.items():
        result = results[name]
        network.to(device)
        with _out_of_memory(result, "1 image"):
            check_logits(name, network, images[:1], bound=1e-3 if device.type == "cpu" else 2e-2)
        for kind in kinds:
            fits = None
            if not result.out_of_memory or result.out_of_memory[-1] != "1 image":
                fits = _warm_up(network, images[: batches[name]], warmup, result, kind, amp)
            setattr(result, f"{kind}_batch_size", fits)
        if not infer:
            result.infer_batch_size, result.memory = None, None
        network.to("cpu")
    for network in networks.values():
        network.to(device)
    for kind in kinds:
        steps = {}
        for name, network in networks.items():
            network.train(kind == "train")
            if (fits := getattr(results[name], f"{kind}_batch_size")) is not None:
                steps[name] = _step(network, images[:fits], kind, amp)
        for name, taken in seconds_in_turn(steps, rounds, device, warmup=0).items():
            _summarise(results[name], kind, taken)
    for network in networks.values():
        network.eval().to("cpu")
    return list(results.values())


def _step(network: nn.Module, images: Tensor, kind: str, amp: bool) -> Step:
    return partial(training if kind == "train" else inference, network, images, amp=amp)


def _summarise(result: Throughput, kind: str, seconds: list[float]) -> None:
    (result.seconds if kind == "infer" else result.train_seconds).extend(seconds)
    if not seconds:
        return
    batch = getattr(result, f"{kind}_batch_size")
    rates = [batch / s for s in seconds]
    setattr(result, f"{kind}_samples_per_sec", statistics.median(rates))
    setattr(result, f"{kind}_spread", (min(rates), max(rates)))
    setattr(result, f"{kind}_step_time", 1e3 * statistics.median(seconds))


@contextlib.contextmanager
def _out_of_memory(result: Throughput, batch: str) -> Iterator[None]:
    """Note what does not fit in place of an error. What did fit is given back."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not any(
            words in str(error) for words in ("out of memory", "allocate memory")
        ):
            raise
        result.out_of_memory.append(batch)
    if result.out_of_memory and torch.cuda.is_available():
        torch.cuda.empty_cache()


def _warm_up(
    network: nn.Module, images: Tensor, passes: int, result: Throughput, kind: str, amp: bool
) -> int | None:
    """The batch that fits, if any; its peak memory is noted."""
    size, memory = images.shape[0], "memory" if kind == "infer" else "train_memory"
    while size:
        failed = len(result.out_of_memory)
        step = _step(network, images[:size], kind, amp)
        network.train(kind == "train")
        with _out_of_memory(result, str(size) if kind == "infer" else f"{kind} {size}"):
            for _ in range(passes):
                step()
            if images.is_cuda:
                setattr(result, memory, peak_memory(step, images.device) / 2**20)
            elif kind == "train":
                counted = activation_memory(network, images.shape[2], batch_size=size, mode="training")
                result.train_memory = counted / 2**20
            elif failed:
                result.memory = activation_memory(network, images.shape[2], batch_size=size) / 2**20
        network.eval()
        if len(result.out_of_memory) == failed:
            return size
        network.zero_grad(set_to_none=True)  # what a step that did not fit has left
        size //= 2
    setattr(result, memory, None)
    return None
