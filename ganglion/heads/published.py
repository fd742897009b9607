"""Where the papers' detectors and segmentors are published. The best epoch of some was picked on the validation set."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import unknown

_VMAMBA = "https://github.com/MzeroMiko/VMamba/releases/download/%23v2det/mask_rcnn_vssm_fpn_coco_"
_VMAMBA_ADE = (
    "https://github.com/MzeroMiko/VMamba/releases/download/%23v2seg/upernet_vssm_4xb4-160k_ade20k-512x512_"
)
_SPARX = "https://github.com/LMMMEng/SparX/releases/download/v1/maskrcnn_sparx_mamba_"
_SPARX_ADE = "https://github.com/LMMMEng/SparX/releases/download/v1/upernet_sparx_mamba_"


@dataclass(frozen=True, kw_only=True)
class PublishedHead:
    """A published detector or segmentor: what `create_detector` or `create_segmentor` is given, and its weights.

    name, backbone, num_classes: as there. schedule: how it was trained. url: of the checkpoint, which
    `ganglion.load_checkpoint` reads. The backbone's size is in the file's name, its form is not: a file that is of
    another one is refused when it is loaded.
    """

    name: str
    backbone: str
    num_classes: int
    schedule: str
    url: str


def _vmamba(backbone: str, schedule: str, file: str) -> PublishedHead:
    return PublishedHead(
        name="mask_rcnn", backbone=backbone, num_classes=80, schedule=schedule, url=f"{_VMAMBA}{file}.pth"
    )


def _sparx(size: str, schedule: str) -> PublishedHead:
    return PublishedHead(
        name="mask_rcnn",
        backbone=f"sparx_mamba_{size}",
        num_classes=80,
        schedule=schedule,
        url=f"{_SPARX}{size[0]}_fpn_{schedule}_coco.pth",
    )


#: By name: detector, backbone, schedule.
PUBLISHED_DETECTORS: dict[str, PublishedHead] = {
    "mask_rcnn.vmamba_tiny.1x": _vmamba("vmamba_tiny_s1l8", "1x", "tiny_s_epoch_12"),
    "mask_rcnn.vmamba_tiny.3x": _vmamba("vmamba_tiny_s1l8", "3x", "tiny_ms_3x_s_epoch_31"),
    "mask_rcnn.vmamba_small.1x": _vmamba("vmamba_small_s2l15", "1x", "small_epoch_11"),
    "mask_rcnn.vmamba_small.3x": _vmamba("vmamba_small_s2l15", "3x", "small_ms_3x_epoch_32"),
    "mask_rcnn.vmamba_base.1x": _vmamba("vmamba_base_s2l15", "1x", "base_epoch_11"),
    "mask_rcnn.vmamba_base.1x_batch8": _vmamba("vmamba_base_s2l15", "1x", "base_epoch_12_bs8"),
    **{
        f"mask_rcnn.sparx_mamba_{size}.{schedule}": _sparx(size, schedule)
        for size in ("tiny", "small", "base")
        for schedule in ("1x", "3x")
    },
}


def published_detector(name: str) -> PublishedHead:
    """An entry of `PUBLISHED_DETECTORS`. Raises ValueError for an unknown name."""
    if name not in PUBLISHED_DETECTORS:
        raise ValueError(unknown("published detector", name, PUBLISHED_DETECTORS))
    return PUBLISHED_DETECTORS[name]


def _segmentor(backbone: str, url: str) -> PublishedHead:
    return PublishedHead(name="upernet", backbone=backbone, num_classes=150, schedule="160k", url=url)


#: By name: segmentor, backbone, schedule. Of Semantic FPN no weights are published.
PUBLISHED_SEGMENTORS: dict[str, PublishedHead] = {
    "upernet.vmamba_tiny.160k": _segmentor("vmamba_tiny_s1l8", f"{_VMAMBA_ADE}tiny_s_iter_160000.pth"),
    "upernet.vmamba_small.160k": _segmentor("vmamba_small_s2l15", f"{_VMAMBA_ADE}small_iter_144000.pth"),
    "upernet.vmamba_base.160k": _segmentor("vmamba_base_s2l15", f"{_VMAMBA_ADE}base_iter_160000.pth"),
    **{
        f"upernet.sparx_mamba_{size}.160k": _segmentor(f"sparx_mamba_{size}", f"{_SPARX_ADE}{size}.pth")
        for size in ("tiny", "small", "base")
    },
}


def published_segmentor(name: str) -> PublishedHead:
    """An entry of `PUBLISHED_SEGMENTORS`. Raises ValueError for an unknown name."""
    if name not in PUBLISHED_SEGMENTORS:
        raise ValueError(unknown("published segmentor", name, PUBLISHED_SEGMENTORS))
    return PUBLISHED_SEGMENTORS[name]
