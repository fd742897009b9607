"""Finding the weights of one network in what a training script has saved.

A file may hold several: raw and averaged weights, a student and its teacher. Each is found by the name of its first
layer, behind whatever entries lead to it (`model`, `state_dict`, ...) and whatever prefix it has (`module.`,
`backbone.`, ...). Which of them are averages is told by the words of those names.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from .weight_files import CheckpointError

Weights = Literal["auto", "raw", "ema"]

#: The first layer of a network, ours or published, behind what wraps it.
_FIRST_LAYER = re.compile(r"(?P<prefix>(?:[^.]+\.)*?)(?:stem\.0\.|patch_embed\.(?:0|proj)\.)")

#: What torch.compile, activation checkpointing, FSDP and data parallelism add to the names of the modules they wrap,
#: in front of a network or inside it.
_WRAPPER = re.compile(
    r"(?<![^.])(?:_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module|_forward_module|module)\."
)

#: Words that name averaged weights: model_ema, module_ema, emaModel, swa_state_dict, averaged_model, ...
_AVERAGES = frozenset(
    ("ema", "swa", "ewa", "lawa", "polyak", "average", "averages", "averaged", "avg", "shadow")
)
#: What torch's AveragedModel counts, beside its averages.
_COUNT = "n_averaged"

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")

#: How deep in a file a network is looked for.
_DEPTH = 5


def plain_name(name: str) -> str:
    """`blocks.0._orig_mod.norm1.weight` -> `blocks.0.norm1.weight`."""
    return _WRAPPER.sub("", name)


@dataclass(frozen=True)
class _Found:
    """A network in a file: the entries that lead to its dictionary, that dictionary, the prefix of its names."""

    path: tuple[str, ...]
    entries: Mapping[Any, Any]
    prefix: str

    def __str__(self) -> str:
        return repr(".".join([*self.path, self.prefix] if self.prefix or not self.path else self.path))

    @property
    def averaged(self) -> bool:
        """Whether its names say so, or it is the state dict of torch's AveragedModel."""
        return _says_averaged(".".join([*self.path, self.prefix])) or _COUNT in self.entries

    def split(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Its tensors by their names without prefix, and all else in its dictionary."""
        tensors: dict[str, Tensor] = {}
        others: dict[str, Any] = {}
        for key, value in self.entries.items():
            name = plain_name(str(key))
            if name == _COUNT or not name.startswith(self.prefix) or not isinstance(value, Tensor):
                others[str(key)] = value
            elif (name := name.removeprefix(self.prefix)) in tensors:
                raise CheckpointError(f"two tensors of the checkpoint are {name}; one of them is {key}")
            else:
                tensors[name] = value
        return tensors, others


def find_network(content: Any, weights: Weights, where: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of the one network in `content`, without prefix, and what lies beside them.

    weights: "raw" or "ema" (averaged) ones; "auto" takes the averaged ones if there are any. where: `content` in
    messages.

    Raises CheckpointError if there is none, or more than one to choose from.
    """
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{where} holds one {type(content).__name__}, expected a dictionary of tensors")
    dictionaries = list(_dictionaries(content))
    found = [_Found(path, entries, prefix) for path, entries in dictionaries for prefix in _prefixes(entries)]
    known = bool(found)
    if not known:  # of another library, or without its first layer: what it has is for the caller to judge
        found = [_Found(path, entries, "") for path, entries in dictionaries if _has_tensors(entries)]
    if not found:
        raise CheckpointError(
            f"{where} holds no tensors; its entries are {shorten([repr(str(key)) for key in content])}"
        )
    # Lightning's averaging puts the averages where the weights were, and those here.
    swapped = any(network.path[:1] == ("current_model_state",) for network in found)
    averaged = [n for n in found if n.averaged or (swapped and n.path[:1] == ("state_dict",))]
    raw = [n for n in found if n not in averaged]
    unnamed = _unnamed_averages(content, found)
    if weights == "ema" and not averaged:
        hint = f"; {unnamed!r} holds tensors without names" if unnamed else ""
        raise CheckpointError(
            f"{where} has no averaged weights: expected an entry such as 'model_ema' or 'ema_state_dict'{hint}"
        )
    if weights == "raw" and not raw:
        raise CheckpointError(f"{where} has averaged weights only, under {averaged[0]}")
    if weights == "auto" and not averaged and unnamed:
        raise CheckpointError(
            f"{where} has raw weights under {raw[0]} and averaged ones without their names under {unnamed!r}: "
            "weights='raw' loads the former"
        )
    choices = raw if weights == "raw" else averaged or raw
    if len(choices) > 1 and known:
        kind = " of averaged weights" if choices is averaged else ""
        raise CheckpointError(
            f"{where} holds several networks{kind}, named {shorten(choices)}: pass the dictionary of one"
        )
    return max(choices, key=lambda network: len(network.entries)).split()


def shorten(entries: Sequence[object], limit: int = 8) -> str:
    """The first `limit` entries, and how many more there are."""
    more = f" ... and {len(entries) - limit} more" if len(entries) > limit else ""
    return ", ".join(map(str, entries[:limit])) + more


def _dictionaries(content: Mapping[Any, Any]) -> Iterator[tuple[tuple[str, ...], Mapping[Any, Any]]]:
    """`content` and the dictionaries in it, each once, with the entries that lead there; not those of optimizers."""
    seen = {id(content)}
    level: list[tuple[tuple[str, ...], Mapping[Any, Any]]] = [((), content)]
    for _ in range(_DEPTH):
        yield from level
        deeper = []
        for path, entries in level:
            for key, value in entries.items():
                if isinstance(value, Mapping) and id(value) not in seen and "optim" not in str(key).lower():
                    seen.add(id(value))
                    deeper.append(((*path, str(key)), value))
        level = deeper


def _prefixes(entries: Mapping[Any, Any]) -> list[str]:
    """What stands before the first layer of the networks among `entries`."""
    names = (plain_name(str(key)) for key, value in entries.items() if isinstance(value, Tensor))
    return sorted({match["prefix"] for name in names if (match := _FIRST_LAYER.match(name))})


def _has_tensors(entries: Mapping[Any, Any]) -> bool:
    return any(isinstance(key, str) and isinstance(value, Tensor) for key, value in entries.items())


def _says_averaged(name: str) -> bool:
    return any(word.lower() in _AVERAGES for word in _WORD.findall(name))


def _unnamed_averages(content: Mapping[Any, Any], found: Sequence[_Found]) -> str | None:
    """What is called averaged and holds weights, but no network: tensors in a list, or under names of their own."""
    for entries in (content, *(network.entries for network in found)):
        for key, value in entries.items():
            first, dot, _ = plain_name(str(key)).partition(".")
            known = any(first in network.path or network.prefix.startswith(first + ".") for network in found)
            own = dot or not isinstance(value, Tensor)
            if own and not known and _says_averaged(first) and _holds_a_matrix(value):
                return first
    return None


def _holds_a_matrix(value: Any, depth: int = _DEPTH) -> bool:
    if isinstance(value, Tensor):
        return value.dim() > 1
    if isinstance(value, Mapping):
        value = list(value.values())
    return (
        depth > 0 and isinstance(value, (list, tuple)) and any(_holds_a_matrix(v, depth - 1) for v in value)
    )
