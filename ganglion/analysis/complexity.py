"""What a network costs: parameters, FLOPs and the memory of its activations, from shapes alone.

Nothing is computed: FLOPs are counted on meta tensors, memory on fake ones, so a network of 100 M parameters
at 1024 x 1024 takes well under a second and no memory.

One FLOP is one multiply-accumulate, counted as both papers count:

    convolution, linear layer, matrix product    their multiply-accumulates, without the bias
    LayerNorm, GroupNorm                         5 per element, 4 without affine parameters
    BatchNorm at inference                       2 per element, 1 without affine parameters
    average pooling of a map                     1 per element read
    resizing of a map                            4 per element made, bilinear; 1, nearest
    selective scan                               9 N + 1 per (batch, route, channel, pixel)
    projection of the step sizes                 R per (batch, route, channel, pixel)
    SparX's scale of the identity path           1 per element, as its published form, a depthwise convolution
    scaled_dot_product_attention                 left out, as the papers' counter does not know it; counted
    and DMCA's channel attention                 apart
    everything else                              0
"""

from __future__ import annotations

import math
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from ..errors import unknown
from ..heads import Pyramid
from ..layers.block import IdentityScale
from ..layers.dmca import ChannelAttention
from .dense import FixedShapes, fixed_shapes
from .flop_formulas import FORMULAS, OUTPUTS


@dataclass(frozen=True, kw_only=True)
class Part:
    """One row of the table of a network: its parameters, FLOPs for one image and the shape of its output."""

    name: str
    params: int
    flops: int
    output: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Complexity:
    """Parameters and FLOPs of a network for one image.

    flops: multiply-accumulates, softmax attention included only if that was asked for.
    attention_flops: those of softmax attention, whether included or not.
    parts: stem, stages, norm, head; what they leave over is a last part named "other".
    """

    img_size: tuple[int, int]
    params: int
    flops: int
    attention_flops: int
    parts: tuple[Part, ...]


def complexity(
    model: nn.Module, img_size: int | tuple[int, int] = 224, *, in_chans: int = 3, attention: bool = False
) -> Complexity:
    """Count parameters and FLOPs at inference of one image of shape (1, in_chans, *img_size).

    model: any module that maps images to a tensor, on any device, meta included; it is not changed. Detectors and
        segmentors are counted as `FixedShapes`.
    img_size: height and width in pixels, or one number for both.
    attention: include the FLOPs of softmax attention.

    Raises LookupError if the network calls an operator of this library that has no formula.
    """
    height, width = _pair(img_size)
    model = fixed_shapes(model)
    parts = dict(_parts(model))
    counter = _FlopCounter(attention)
    shapes: dict[str, tuple[int, ...]] = {}
    with ExitStack() as stack:
        for name, module in parts.items():
            stack.enter_context(counter.part(name, module, shapes))
        for module in model.modules():
            if isinstance(module, IdentityScale):
                stack.enter_context(counter.elementwise(module))
            elif isinstance(module, ChannelAttention):
                stack.enter_context(counter.attention(module))
        stack.enter_context(_inference(model))
        stack.enter_context(counter)
        stack.enter_context(_Functions(counter))
        state = {name: t.to("meta") for name, t in _state(model)}
        dtype = next((t.dtype for t in model.parameters()), torch.float32)
        functional_call(model, state, torch.empty(1, in_chans, height, width, device="meta", dtype=dtype))

    params = {name: sum(p.numel() for p in m.parameters()) for name, m in parts.items()}
    total = sum(p.numel() for p in model.parameters())
    rows = [Part(name=n, params=params[n], flops=counter.by_part[n], output=shapes.get(n, ())) for n in parts]
    rest = Part(
        name="other",
        params=total - sum(params.values()),
        flops=counter.by_part.total() - sum(row.flops for row in rows),
        output=(),
    )
    if rest.params or rest.flops:
        rows.append(rest)
    return Complexity(
        img_size=(height, width),
        params=total,
        flops=counter.by_part.total(),
        attention_flops=counter.attention_flops,
        parts=tuple(rows),
    )


def activation_memory(
    model: nn.Module,
    img_size: int | tuple[int, int] = 224,
    *,
    batch_size: int = 1,
    in_chans: int = 3,
    mode: Literal["inference", "training"] = "inference",
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> int:
    """Peak bytes of all tensors alive at once, without the parameters and buffers.

    mode: "inference" runs the forward pass in eval mode without gradients; "training" a forward pass in train
        mode and the backward pass, whose peak includes the gradients of the parameters so far.
    dtype: of the parameters, buffers and images.
    device: where the tensors pretend to be, which decides what some of PyTorch's own operators keep.

    The image is included; what an operator needs inside itself and what the allocator adds are not.

    Raises ValueError for an unknown mode.
    """
    if mode not in ("inference", "training"):
        raise ValueError(unknown("mode", mode, ("inference", "training")))
    training = mode == "training"
    model = fixed_shapes(model)
    shape = (batch_size, in_chans, *_pair(img_size))
    with ExitStack() as stack:
        stack.enter_context(_mode(model, training))
        stack.enter_context(FakeTensorMode())
        stack.enter_context(torch.set_grad_enabled(training))
        state = {}
        for name, t in _state(model):
            kind = dtype if t.is_floating_point() else t.dtype
            state[name] = torch.empty(t.shape, dtype=kind, device=device)
            state[name].requires_grad_(t.requires_grad and training)
        live = stack.enter_context(_LiveBytes(ignore=state.values()))
        out = functional_call(model, state, torch.empty(shape, dtype=dtype, device=device))
        if training:
            leaves = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
            torch.stack([t.sum() for t in leaves]).sum().backward()
        return live.peak


class _FlopCounter(TorchDispatchMode):
    """Adds up multiply-accumulates by the part of the network that runs, softmax attention apart."""

    def __init__(self, with_attention: bool):
        super().__init__()
        self.by_part: Counter[str] = Counter()
        self.attention_flops = 0
        self._with_attention = with_attention
        self._part = ""
        self._in_attention = self._paused = False

    def add(self, macs: int) -> None:
        """Book what the part that runs has cost."""
        if self._in_attention:
            self.attention_flops += macs
        if not self._in_attention or self._with_attention:
            self.by_part[self._part] += macs

    @contextmanager
    def part(self, name: str, module: nn.Module, shapes: dict[str, tuple[int, ...]]) -> Iterator[None]:
        """Book what runs inside of `module` under `name`."""

        def enter(*args) -> None:
            self._part = name

        def leave(module, args, out) -> None:
            self._part = ""
            shapes[name] = tuple(out.shape[1:]) if isinstance(out, Tensor) else ()

        with _hooked(module, enter, leave):
            yield

    @contextmanager
    def attention(self, module: nn.Module) -> Iterator[None]:
        """Book what runs inside of `module` as attention."""

        def enter(*args) -> None:
            self._in_attention = True

        def leave(*args) -> None:
            self._in_attention = False

        with _hooked(module, enter, leave):
            yield

    @contextmanager
    def elementwise(self, module: nn.Module) -> Iterator[None]:
        """Count 1 for each element that `module` returns."""
        with _hooked(module, lambda *args: None, lambda module, args, out: self.add(out.numel())):
            yield

    @contextmanager
    def fixed(self, attention: int = 0) -> Iterator[None]:
        """Book `attention` for whatever runs here."""
        self._paused = self._in_attention = True
        self.add(attention)
        try:
            yield
        finally:
            self._paused = self._in_attention = False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        packet = func.overloadpacket
        out = OUTPUTS[packet](args) if packet in OUTPUTS else func(*args, **kwargs)
        if not self._paused:
            if packet in FORMULAS:
                self.add(FORMULAS[packet](args, out))
            elif packet in flop_registry:
                self.add(flop_registry[packet](*args, **kwargs, out_val=out) // 2)
            elif func.namespace == "ganglion":
                raise LookupError(
                    f"no FLOP formula for {func}: add one with register_flop_formula in {__name__}"
                )
        return out


class _Functions(TorchFunctionMode):
    """Functions that have to be counted before they are taken apart.

    Attention goes by its arguments, as how it is computed differs from device to device. A pool over one
    axis (DMCA's means of channels) would look like a pool over a map, the only one that the papers count.
    """

    def __init__(self, counter: _FlopCounter):
        super().__init__()
        self._counter = counter

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            query, key, value = (*args, *(kwargs[n] for n in ("query", "key", "value") if n in kwargs))[:3]
            pairs = math.prod(query.shape[:-1]) * key.shape[-2]
            with self._counter.fixed(attention=pairs * (query.shape[-1] + value.shape[-1])):
                return func(*args, **kwargs)
        if func is F.adaptive_avg_pool1d:
            with self._counter.fixed():
                return func(*args, **kwargs)
        return func(*args, **kwargs)


class _LiveBytes(TorchDispatchMode):
    """Follows the storages that operators return until they are freed."""

    def __init__(self, ignore):
        super().__init__()
        self.current = self.peak = 0
        self._live: dict[int, weakref.ref] = {}
        for t in ignore:
            self._follow(t.untyped_storage(), 0)

    def _follow(self, storage: torch.UntypedStorage, size: int) -> None:
        key = id(storage)
        if key in self._live:
            return

        def freed(_) -> None:
            del self._live[key]
            self.current -= size

        self._live[key] = weakref.ref(storage, freed)
        self.current += size
        self.peak = max(self.peak, self.current)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for t in tree_leaves(out):
            if isinstance(t, Tensor):
                storage = t.untyped_storage()
                self._follow(storage, storage.nbytes())
        return out


def _pair(img_size: int | tuple[int, int]) -> tuple[int, int]:
    height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
    if height < 1 or width < 1:
        raise ValueError(f"img_size {img_size}: expected a height and a width of at least 1 pixel")
    return height, width


def _state(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def _parts(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Direct children; a plain sequence of like modules (the stages, not a stem's convolutions) is taken apart, and so
    is the backbone of a detector or segmentor."""
    if isinstance(model, FixedShapes):
        model = model.network
    for name, child in model.named_children():
        if not any(True for _ in _state(child)):  # what has no weights is part of what follows
            continue
        if isinstance(child, Pyramid):
            network = child.network
            inner = getattr(network, "model", None)
            inner = inner if isinstance(inner, nn.Module) else network
            yield from ((f"{name}.{part}", module) for part, module in _parts(inner))
        elif isinstance(child, nn.ModuleList) or (
            type(child) is nn.Sequential
            and len({type(m) for m in child}) == 1 < len(child)
            and name != "stem"
        ):
            yield from ((f"{name}.{i}", m) for i, m in child.named_children())
        else:
            yield name, child


@contextmanager
def _hooked(module: nn.Module, before: Callable, after: Callable) -> Iterator[None]:
    hooks = module.register_forward_pre_hook(before), module.register_forward_hook(after)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _mode(model: nn.Module, training: bool) -> Iterator[None]:
    """`model` in train or eval mode, every module's own flag restored afterwards."""
    before = {module: module.training for module in model.modules()}
    model.train(training)
    try:
        yield
    finally:
        for module, flag in before.items():
            module.training = flag


@contextmanager
def _inference(model: nn.Module) -> Iterator[None]:
    with _mode(model, training=False), torch.no_grad():
        yield
