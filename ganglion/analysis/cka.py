"""Similarity of layers: linear CKA over minibatches, unbiased (SparX, Figure 5).

The estimate is that of Nguyen, Raghu and Kornblith (2021), Eq. 2 and 3, after Kornblith et al. (2019).

Of a batch of n images, features flattened per image, only the Gram matrix (n, n) of each layer is kept, so that a run
needs hardly more memory than a forward pass. Grams are made in float64 of features less their mean, which changes no
HSIC: whatever large mean features have costs no digits.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from ..errors import unknown
from ..layers.block import Block
from ..layers.mixer import Mixer
from ..layers.ss2d import SS2D
from .scans import as_analysed, peeked

Features = Literal["mixer", "scan", "block"]

#: How timm's networks call what mixes tokens.
_MIXERS = ("attn", "token_mixer", "mixer")
#: How timm's classes of blocks end.
_BLOCKS = ("Block", "Bottleneck", "InvertedResidual", "DepthwiseSeparableConv")
#: Features that are converted to float64 at a time.
_CHUNK = 2**18


def layer_similarity(
    network: nn.Module,
    batches: Tensor | Iterable[Tensor | Sequence[Tensor]],
    features: Features | Sequence[str] = "mixer",
    other: nn.Module | None = None,
) -> Tensor:
    """CKA between all layers of a network, or between those of two, (layers, layers of `other`), float64.

        HSIC(K, L) = [tr(K L) + (1'K1)(1'L1) / ((n-1)(n-2)) - 2/(n-2) 1'K L 1] / (n (n-3)), diagonals of K, L zeroed
        CKA(a, b)  = mean HSIC(K_a, K_b) / sqrt(mean HSIC(K_a, K_a) mean HSIC(K_b, K_b)), means over the batches

    network, other: any networks. They run in eval mode, and are left as they were.
    batches: of images (n, C, H, W), float32 or float64, or sequences of which they are the first. All weigh the same;
        a tensor is one of them. One with n < 4 is dropped, and a warning says so.
    features: "mixer", the output of every mixer (of timm's networks that of every attention); "scan", the sum over the
        routes before `out_norm`; "block", the output of every block; or names of modules. `layer_names` says which.

    Unbiased as it is, a value may be above 1 or below 0.

    Raises ValueError for layers that a network does not have, a layer with constant or non-finite features (named), and
    where no batch has 4 images.
    """
    networks = [network] if other is None else [network, other]
    found = [_layers(one, features) for one in networks]
    scales = [_Scales(list(layers)) for layers in found]
    sums: list[Tensor] | None = None
    seen, dropped = 0, []
    dtype, batches = peeked([batches] if isinstance(batches, Tensor) else batches)
    with ExitStack() as stack:
        ready = [stack.enter_context(as_analysed(one, dtype)) for one in networks]
        for batch in batches:
            images = batch if isinstance(batch, Tensor) else batch[0]
            if (n := len(images)) < 4:
                dropped.append(n)
                continue
            each = zip(ready, found, scales, strict=True)
            grams = [_grams(one, layers, images, scale) for one, layers, scale in each]
            a, b = grams[0], grams[-1]
            parts = [part / (n * (n - 3)) for part in (a @ b.T, a.square().sum(1), b.square().sum(1))]
            sums = parts if sums is None else [s + p for s, p in zip(sums, parts, strict=True)]
            seen += 1
    if sums is None:
        raise ValueError(
            f"batches of {', '.join(map(str, dropped))} images: the unbiased estimate needs one of at least 4"
        )
    if dropped:
        warnings.warn(
            f"{len(dropped)} of {seen + len(dropped)} batches were dropped: the unbiased estimate needs at least "
            f"4 images, they had {', '.join(map(str, dropped))}",
            UserWarning,
            stacklevel=2,
        )
    for scale in scales:
        scale.check()
    return sums[0] / (sums[1][:, None] * sums[2]).sqrt()


def mean_off_diagonal(similarity: Tensor) -> float:
    """The mean of a square matrix off its diagonal; NaN for one layer. Raises ValueError for another shape."""
    if similarity.ndim != 2 or similarity.shape[0] != similarity.shape[1]:
        raise ValueError(f"similarity has shape {tuple(similarity.shape)}: expected (layers, layers)")
    n = len(similarity)
    return float((similarity.sum() - similarity.trace()) / (n * (n - 1))) if n > 1 else float("nan")


def layer_names(network: nn.Module, features: Features | Sequence[str] = "mixer") -> list[str]:
    """Names of the modules whose features `layer_similarity` compares, in its order. Errors as there."""
    return list(_layers(network, features))


def _layers(network: nn.Module, features: Features | Sequence[str]) -> dict[str, tuple[nn.Module, bool]]:
    """Modules by their names, and whether their input is meant rather than their output."""
    modules = dict(network.named_modules())
    if not isinstance(features, str):
        names = list(features)
        for name in names:
            if name not in modules:
                raise ValueError(
                    f"{type(network).__name__}: {unknown('module', name, filter(None, modules))}"
                )
        found = {name: (modules[name], False) for name in names}
    elif features == "scan":
        scans = {name: module for name, module in modules.items() if isinstance(module, SS2D)}
        found = {f"{name}.out_norm": (scan.out_norm, True) for name, scan in scans.items()}
    elif features in ("mixer", "block"):
        is_one = _is_mixer if features == "mixer" else _is_block
        found = {}
        for name, module in modules.items():
            inside = any(name.startswith(f"{outer}.") for outer in found)
            if name and not inside and is_one(name, module):
                found[name] = (module, False)
    else:
        raise ValueError(unknown("features", features, get_args(Features)) + " Or a list of modules' names.")
    if not found:
        near = [name for name, module in network.named_children() if any(True for _ in module.parameters())]
        raise ValueError(
            f"{type(network).__name__} has no {features!r} to compare: expected "
            f"{_has(network)}names of its modules, such as {near[:4]}"
        )
    return found


def _has(network: nn.Module) -> str:
    """What a network without the features that were asked for has instead."""
    named = list(network.named_modules())[1:]
    kinds = {"mixer": _is_mixer, "block": _is_block}
    return "".join(f"{k}, or " for k, is_one in kinds.items() if any(is_one(n, m) for n, m in named))


def _is_mixer(name: str, module: nn.Module) -> bool:
    return isinstance(module, Mixer) or name.rpartition(".")[2] in _MIXERS


def _is_block(name: str, module: nn.Module) -> bool:
    return isinstance(module, Block) or type(module).__name__.endswith(_BLOCKS)


class _Scales:
    """How large the features of each layer are, and how large without what is the same in all images."""

    def __init__(self, names: Sequence[str]):
        self.names = list(names)
        self.whole = dict.fromkeys(names, 0.0)
        self.centred = dict.fromkeys(names, 0.0)
        self.epsilon = 0.0

    def check(self) -> None:
        """Raise ValueError, naming the layers, where nothing but rounding differs between images."""
        constant = [
            name for name in self.names if self.centred[name] <= (16 * self.epsilon) ** 2 * self.whole[name]
        ]
        if constant:
            raise ValueError(
                f"constant features, of which there is no similarity: {', '.join(constant)}. Expected layers whose "
                "output depends on the image"
            )


def _grams(
    network: nn.Module, layers: dict[str, tuple[nn.Module, bool]], images: Tensor, scales: _Scales
) -> Tensor:
    """(layers, n * n): the U-centred Gram matrix of each layer, diagonal 0."""
    grams: dict[str, Tensor] = {}

    def keep(name: str, x: object) -> None:
        while isinstance(x, (tuple, list)) and x:
            x = x[0]
        if not isinstance(x, Tensor) or x.shape[0] % len(images):
            found = f"shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(f"{name} gives {found}: expected features of {len(images)} images, (n, ...)")
        grams[name] = _gram(name, x.detach(), len(images), scales)

    hooks = []
    for name, (_, of_input) in layers.items():
        module = network.get_submodule(name)
        hooks.append(
            module.register_forward_pre_hook(partial(_keep_input, keep, name))
            if of_input
            else module.register_forward_hook(partial(_keep_output, keep, name))
        )
    try:
        with torch.no_grad():
            network(images)
    finally:
        for hook in hooks:
            hook.remove()
    missing = [name for name in layers if name not in grams]
    if missing:
        raise ValueError(f"the network does not run {', '.join(missing)}: expected layers that it does")
    return torch.stack([_centred(grams[name]).flatten() for name in layers])


def _keep_input(keep: Callable[[str, object], None], name: str, module: nn.Module, args: object) -> None:
    keep(name, args)


def _keep_output(
    keep: Callable[[str, object], None], name: str, module: nn.Module, args: object, output: object
) -> None:
    keep(name, output)


def _gram(name: str, x: Tensor, n: int, scales: _Scales) -> Tensor:
    """(n, n) float64: scalar products of the images' features less their mean."""
    gram = torch.zeros(n, n, dtype=torch.float64, device=x.device)
    for part in x.reshape(n, -1).split(_CHUNK, dim=1):
        part = part.double()
        scales.whole[name] += float(part.square().sum())
        part = part - part.mean(0)
        gram += part @ part.T
    if not gram.isfinite().all():
        raise ValueError(f"features of {name} are not finite")
    scales.centred[name] += float(gram.trace())
    scales.epsilon = torch.finfo(x.dtype).eps
    return gram


def _centred(gram: Tensor) -> Tensor:
    """U-centring, after which HSIC is a scalar product: rows, columns and diagonal become 0."""
    n = len(gram)
    gram = gram.clone().fill_diagonal_(0)
    rows = gram.sum(1) / (n - 2)
    gram = gram - rows[:, None] - rows + gram.sum() / ((n - 1) * (n - 2))
    return gram.fill_diagonal_(0)
