"""What the scans of a network are given: read off the operator's calls, whatever module makes them."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..layers.ss2d import SS2D
from ..ops import Route
from ..ops.attention import Walk, walks


@dataclass(frozen=True, kw_only=True)
class Scan:
    """The arguments of one call of `ganglion.ops.scan2d`, which states their shapes. A is negative."""

    x: Tensor
    proj: Tensor
    dt_weight: Tensor
    dt_bias: Tensor
    A: Tensor
    D: Tensor | None
    routes: tuple[Route, ...]

    @property
    def size(self) -> tuple[int, int]:
        """H and W."""
        return self.x.shape[1], self.x.shape[2]

    def walks(self, image: int = 0) -> list[Walk]:
        """One for each route, of one image of the batch."""
        return walks(self.proj[image], self.dt_weight, self.dt_bias, self.A, self.routes)


class _Recorder(TorchFunctionMode):
    """Keeps what the operator is called with. compute: its results matter, else they are left out, as zeros.

    It sees calls from Python, where a mode of the dispatcher would see every operation that these consist of, at 20
    microseconds each.
    """

    def __init__(self, *, compute: bool) -> None:
        super().__init__()
        self._compute = compute
        self.scans: list[Scan] = []

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None) -> Any:
        if func is torch.ops.ganglion.scan2d or func is torch.ops.ganglion.scan2d.default:
            self.scans.append(_scan(*args, **(kwargs or {})))
            if not self._compute:
                return torch.zeros_like(args[0]), args[0].new_empty(0)
        return func(*args, **(kwargs or {}))


def _scan(x, proj, dt_weight, dt_bias, A, D, routes, backend, size=None, log_A=False) -> Scan:
    x, proj, dt_weight, dt_bias, A = (t.detach() for t in (x, proj, dt_weight, dt_bias, A))
    return Scan(
        x=x if size is None else x.unflatten(1, size),
        proj=proj if size is None else proj.unflatten(1, size),
        dt_weight=dt_weight,
        dt_bias=dt_bias,
        A=-torch.exp(A.to(torch.promote_types(A.dtype, torch.float32))) if log_A else A,
        D=None if D is None else D.detach(),
        routes=tuple(Route.from_code(code) for code in routes),
    )


@torch.no_grad()
def scans_of(mixer: nn.Module, x: Tensor, earlier: Sequence[Tensor] = ()) -> list[Scan]:
    """The scans that an `SS2D` runs on x (B, dim, H, W) and the earlier features that it reads: one of all routes, or,
    of "cascade2d", one for each route in their order.

    Raises TypeError for another module or dtype.
    """
    if not isinstance(mixer, SS2D):
        raise TypeError(f"{type(mixer).__name__} has no scan: expected an SS2D, as a network's block.mixer")
    with as_analysed(mixer, x.dtype) as ready, _Recorder(compute=mixer.cascade) as recorder:
        ready(x, list(earlier))
    return _in_order(mixer, recorder.scans)


def _in_order(mixer: SS2D, scans: list[Scan]) -> list[Scan]:
    """By routes: a cascade runs the way back of each axis first."""
    return [scans[i] for i in (1, 0, 3, 2)] if mixer.cascade else scans


@contextmanager
def recorded(network: nn.Module) -> Iterator[dict[str, list[Scan]]]:
    """What the scans of a network are given when it runs once in the block, with or without gradients: the lists of
    `scans_of`, by the names of `scan_layers`, in a dictionary that is filled when the block ends.

    Raises ValueError if there are no scans.
    """
    layers = scan_layers(network)
    recorders = {name: _Recorder(compute=True) for name in layers}
    found: dict[str, list[Scan]] = {}
    with ExitStack() as at_work:  # while a layer runs, and not between layers

        def begin(recorder: _Recorder):
            def enter(module: nn.Module, args: Any) -> None:
                at_work.enter_context(recorder)

            return enter

        def end(module: nn.Module, args: Any, output: Any) -> None:
            at_work.close()

        hooks = [layer.register_forward_pre_hook(begin(recorders[name])) for name, layer in layers.items()]
        hooks += [layer.register_forward_hook(end) for layer in layers.values()]
        try:
            yield found
        finally:
            for hook in hooks:
                hook.remove()
    for name, recorder in recorders.items():
        found[name] = _in_order(layers[name], recorder.scans)


def scan_layers(network: nn.Module) -> dict[str, SS2D]:
    """The scans of a network by their modules' names. Raises ValueError if there are none."""
    found = {name: module for name, module in network.named_modules() if isinstance(module, SS2D)}
    if not found:
        raise ValueError(
            f"{type(network).__name__} has no scans, so there are no scan maps and no scan statistics of it: "
            "it can have the effective receptive field and the similarity of its layers"
        )
    return found


def layer_inputs(network: nn.Module, images: Tensor) -> dict[str, tuple[Tensor, list[Tensor]]]:
    """What each scan layer is called with when the network runs on images (B, 3, H, W): its map and the earlier
    features that it reads, by the names of `scan_layers`. All are kept: for one image, or a few.
    """
    found: dict[str, tuple[Tensor, list[Tensor]]] = {}

    def keep(name: str):
        return lambda module, args: found.__setitem__(name, (args[0], list(args[1])))

    names = list(scan_layers(network))
    with as_analysed(network, images.dtype) as ready, torch.no_grad():
        hooks = [ready.get_submodule(name).register_forward_pre_hook(keep(name)) for name in names]
        try:
            ready(images)
        finally:
            for hook in hooks:
                hook.remove()
    return found


def peeked(batches: Tensor | Iterable[Any]) -> tuple[torch.dtype, Iterator[Any]]:
    """The dtype of the first batch of images, and all batches; of a tensor (B, C, H, W) one for each image.

    A batch is a tensor, or a sequence that begins with one. Raises ValueError where there is none.
    """
    found = iter(batches.split(1) if isinstance(batches, Tensor) else batches)
    first = next(found, None)
    if first is None:
        raise ValueError("expected at least one image")
    images = first if isinstance(first, Tensor) else first[0]
    return images.dtype, chain([first], found)


@contextmanager
def as_analysed(network: nn.Module, dtype: torch.dtype) -> Iterator[nn.Module]:
    """The network as analyses run it: in eval mode, without gradients of its parameters, in float32 or float64.

    The network itself if its dtype is this, else a copy. In float64 scans run on the backend that takes float64, since
    who asks for that has no use for a warning that it is slower. All is as it was at the end.

    Raises TypeError for another dtype.
    """
    if dtype not in (torch.float32, torch.float64):
        raise TypeError(f"dtype {dtype}: analyses run in float32 or float64")
    floating = (t for t in (*network.parameters(), *network.buffers()) if t.is_floating_point())
    if any(t.dtype != dtype for t in floating):
        network = copy.deepcopy(network).to(dtype)
    modules = list(network.modules())
    training = [m for m in modules if m.training]
    trained = [p for p in network.parameters() if p.requires_grad]
    scans = [m for m in modules if isinstance(m, SS2D) and m.backend == "auto"]
    try:
        if training:
            network.eval()
        for parameter in trained:
            parameter.requires_grad_(False)
        if dtype == torch.float64:
            for scan in scans:
                scan.backend = "torch"
        yield network
    finally:
        for scan in scans:
            scan.backend = "auto"
        for module in training:
            module.training = True
        for parameter in trained:
            parameter.requires_grad_()
