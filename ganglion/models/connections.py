"""Cross-layer connections as values: which layers of a stage are ganglions and what each of them reads.

SparX (Lou et al. 2025), section 3.1. A stage is a chain of layers; layer i turns the output of layer i - 1
into its own. A *ganglion* layer additionally reads a list of features from before: its *intra-connections*
go to the normal layers since the last ganglion, its *inter-connections* to the last M ganglions, the window.
A *normal* layer reads nothing but its input.

A `Plan` is that list for every layer of one stage and nothing else, so SparX, a plain network, and the dense
rivals of the paper's Table 5 differ only in the value that `sparx`, `plain`, `dgc` or `dsn` returns. A new
rule is a new function, or `Plan(reads=...)` written by hand.

A stage runs its plan, holding no feature longer than needed, as

    kept = {STAGE_INPUT: x} if plan.keeps(STAGE_INPUT) else {}
    for i, block in enumerate(blocks):
        x = block(x, [kept[j] for j in plan.reads[i]])
        for j in plan.frees[i]:
            del kept[j]
        if plan.keeps(i):
            kept[i] = x
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

#: The index by which a plan names the input of the stage, as if that were the output of a layer before.
STAGE_INPUT = -1


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What each layer of one stage reads besides its input.

    reads: for layer i the indices of the earlier features that it reads, in the order in which they are
        concatenated; j >= 0 is the output of layer j, `STAGE_INPUT` the input of the stage. Empty for a
        normal layer.

    Raises ValueError if there is no layer, a layer reads a feature that does not exist before it, or reads
    one twice; TypeError if an index is not an int.
    """

    reads: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "reads", tuple(tuple(read) for read in self.reads))
        if not self.reads:
            raise ValueError(
                "reads is empty: expected one tuple of feature indices for each layer, at least one"
            )
        for layer, read in enumerate(self.reads):
            for feature in read:
                _check_int(f"reads[{layer}]", feature)
                if not STAGE_INPUT <= feature < layer:
                    valid = "-1 (the stage input)" + (f" to {layer - 1}" if layer else "")
                    raise ValueError(
                        f"reads[{layer}]={read}: no feature {feature} before layer {layer}; valid: {valid}"
                    )
            if len(set(read)) != len(read):
                raise ValueError(f"reads[{layer}]={read}: a feature is read twice; expected each index once")

    @property
    def depth(self) -> int:
        """Number of layers."""
        return len(self.reads)

    @property
    def ganglions(self) -> tuple[int, ...]:
        """Indices of the ganglion layers, ascending."""
        return tuple(layer for layer, read in enumerate(self.reads) if read)

    def is_ganglion(self, layer: int) -> bool:
        """Whether a layer reads anything besides its input."""
        return bool(self.reads[layer])

    @cached_property
    def last_read(self) -> dict[int, int]:
        """For each feature that is read at all, the last layer that reads it."""
        return {feature: layer for layer, read in enumerate(self.reads) for feature in read}

    def keeps(self, feature: int) -> bool:
        """Whether a feature has to be kept for a later layer (other than as the next layer's input)."""
        return feature in self.last_read

    @cached_property
    def frees(self) -> tuple[tuple[int, ...], ...]:
        """For each layer the kept features that no layer after it reads."""
        return tuple(
            tuple(feature for feature in read if self.last_read[feature] == layer)
            for layer, read in enumerate(self.reads)
        )


def plain(depth: int) -> Plan:
    """A chain without ganglions (the paper's PlainNet, and VMamba)."""
    _check_int("depth", depth, minimum=1)
    return Plan(reads=((),) * depth)


def sparx(
    depth: int,
    *,
    stride: int,
    window: int | None,
    start: int = 0,
    stage_input: bool = True,
    cross_stage: bool = False,
) -> Plan:
    """The rules of SparX for one stage.

    depth: number of layers.
    stride: S, one plus the number of normal layers between two ganglions. The ganglions are depth - 1,
        depth - 1 - stride, ... down to `start`, so the last layer always is one.
    window: M, how many earlier ganglions a ganglion reads at most; None for all.
    start: lowest index that a ganglion may have.
    stage_input: whether the first ganglion also reads the input of the stage. False in the first stage of a
        network.
    cross_stage: the stage input stays in the window as if it were a ganglion before the first layer, until
        later ganglions push it out (the form that reproduces the row M=4 of Table 7).

    A ganglion reads, in this order: the stage input (the first ganglion only), the normal layers since the
    last ganglion, the ganglions in the window; each oldest first.

    Raises ValueError, naming the argument, its value and the valid ones, and also if a ganglion would have
    nothing to read; TypeError if a number is not an int.
    """
    ganglions = _ganglions(depth, stride, start)
    if window is not None:
        _check_int("window", window, minimum=1)
    if cross_stage and not stage_input:
        raise ValueError(
            "cross_stage=True with stage_input=False: there is no stage input to keep in the window"
        )

    reads: list[tuple[int, ...]] = [()] * depth
    hubs = [STAGE_INPUT] if cross_stage else []
    previous = -1
    for layer in ganglions:
        normal = list(range(previous + 1, layer))
        if previous < 0:
            read = [STAGE_INPUT, *normal] if stage_input else normal
        else:
            read = normal + (hubs if window is None else hubs[-window:])
        if not read:
            raise ValueError(
                f"start={start} makes layer {layer} a ganglion with nothing to read, as stage_input=False; "
                f"valid: a start that leaves a layer before the first ganglion"
            )
        reads[layer] = tuple(read)
        hubs.append(layer)
        previous = layer
    return Plan(reads=tuple(reads))


def dgc(depth: int, *, stride: int, start: int = 0, stage_input: bool = True) -> Plan:
    """Dense ganglion connections (DGC of Table 5): ganglions as in `sparx`, each reads all that came before.

    That is the stage input (unless `stage_input` is False) and the output of every earlier layer, oldest
    first. Arguments and errors as in `sparx`.
    """
    first = STAGE_INPUT if stage_input else 0
    reads: list[tuple[int, ...]] = [()] * depth
    for layer in _ganglions(depth, stride, start):
        reads[layer] = tuple(range(first, layer))
        if not reads[layer]:
            raise ValueError(
                f"start={start} makes layer {layer} a ganglion with nothing to read, as stage_input=False; "
                f"valid: a start that leaves a layer before the first ganglion"
            )
    return Plan(reads=tuple(reads))


def dsn(depth: int, *, stage_input: bool = True) -> Plan:
    """The DenseNet-style network of Table 5 (DSN): SparX with S = 1 and no window.

    Every layer is a ganglion that reads all earlier layers; the stage input goes to the first ganglion only.
    Without a stage input the first layer stays normal. The paper does not say which stages are dense, nor
    whether every layer reads the stage input. With this plan in every stage SparX-Mamba-T comes to 30.73 M
    and 5.98 G, the nearest to the paper's 30.9 M and 6.0 G of the forms that were counted: 30.67 M and 5.88 G
    if the first stage stays plain, 32.53 M and 6.21 G if moreover every layer reads the stage input.
    """
    start = 0 if stage_input or depth == 1 else 1
    return sparx(depth, stride=1, window=None, start=start, stage_input=stage_input)


def _ganglions(depth: int, stride: int, start: int) -> range:
    _check_int("depth", depth, minimum=1)
    _check_int("stride", stride, minimum=1)
    _check_int("start", start)
    if not 0 <= start < depth:
        raise ValueError(f"start={start} is outside the stage: valid for depth {depth}: 0 to {depth - 1}")
    return range(start + (depth - 1 - start) % stride, depth, stride)


def _check_int(name: str, value: object, minimum: int | None = None) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name}={value!r} is a {type(value).__name__}: expected an int")
    if minimum is not None and value < minimum:
        raise ValueError(f"{name}={value}: must be at least {minimum}")
