"""ImageNet-1K top-1 accuracies that the papers and the repository of VMamba print for networks of this library."""

from __future__ import annotations

from typing import NamedTuple

from .published_speed import PRESETS


class Accuracy(NamedTuple):
    """top1: percent, of ImageNet-1K's validation images at 224 pixels. source: where it is printed."""

    top1: float
    source: str


_RELEASES = "VMamba's repository"
_TINY = "sparx_mamba_tiny"

#: By the networks' names; those of the tables of `bench` are not written twice.
_MORE: dict[str, Accuracy] = {
    "vmamba_tiny_s1l8": Accuracy(82.6, _RELEASES),
    "vmamba_small_s1l20": Accuracy(83.3, _RELEASES),
    "vmamba_base_s1l20": Accuracy(83.8, _RELEASES),
    "vanilla_vmamba_small": Accuracy(83.5, _RELEASES),
    "vanilla_vmamba_base": Accuracy(83.7, _RELEASES),
    f"{_TINY}_plain": Accuracy(82.4, "SparX Table 7"),
    f"{_TINY}_s1": Accuracy(83.5, "SparX Table 7"),
    f"{_TINY}_s3": Accuracy(83.2, "SparX Table 7"),
    f"{_TINY}_s4": Accuracy(82.9, "SparX Table 7"),
    f"{_TINY}_m2": Accuracy(83.0, "SparX Table 7"),
    f"{_TINY}_m4": Accuracy(83.5, "SparX Table 7"),
    f"{_TINY}_no_dpe": Accuracy(83.3, "SparX Table 8"),
    f"{_TINY}_no_skip": Accuracy(83.1, "SparX Table 8"),
    f"{_TINY}_no_sr": Accuracy(83.4, "SparX Table 8"),
    "sparx_swin_tiny": Accuracy(82.6, "SparX Table 9"),
    "sparx_swin_base": Accuracy(83.9, "SparX Table 9"),
    "sparx_ssm_tiny": Accuracy(82.9, "SparX Table 10"),
    "sparx_bissm_tiny": Accuracy(83.1, "SparX Table 10"),
}


def printed_accuracy(model: str) -> Accuracy | None:
    """What is printed for a network of this library, by its name in timm's registry; None where nothing is."""
    if model in _MORE:
        return _MORE[model]
    for preset in PRESETS.values():
        for row in preset.rows:
            if row.model == model and row.img_size == 224 and row.top1 is not None:
                return Accuracy(row.top1, preset.table)
    return None
