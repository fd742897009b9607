"""Mask R-CNN (He et al. 2017) over a feature pyramid network, with the rules of the published detectors.

torchvision has its heads and operators; where its rules differ from the published ones, `boxes` and `masks` have them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads
from torchvision.models.detection.rpn import RPNHead

from ..config import check_positive, check_range
from ..data import Ragged
from . import boxes as B
from . import masks as M
from .layers import Neck
from .pyramid import STRIDES, Pyramid
from .targets import check_targets
from .weight_names import DETECTOR, undecayed

_RPN_STDS = (1.0, 1.0, 1.0, 1.0)
_BOX_STDS = (0.1, 0.1, 0.2, 0.2)
#: Batches are padded to multiples of this.
_MULTIPLE = 32


@dataclass(frozen=True, kw_only=True)
class MaskRCNNConfig:
    """The published settings.

    channels: of the neck and the mask head. box_channels: of the box head. anchor_scale: side of an anchor in strides.
    anchor_ratios: height over width. proposals_before_nms: of a level, in evaluation; train_proposals_before_nms: in
    training. proposals: of an image, after. rpn_samples, box_samples: boxes of an image that training looks at.
    score_threshold, nms_threshold, detections: what is kept of an image at the end.
    """

    channels: int = 256
    box_channels: int = 1024
    anchor_scale: float = 8.0
    anchor_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    proposals_before_nms: int = 1000
    train_proposals_before_nms: int = 2000
    proposals: int = 1000
    rpn_samples: int = 256
    box_samples: int = 512
    score_threshold: float = 0.05
    nms_threshold: float = 0.5
    detections: int = 100

    def __post_init__(self) -> None:
        check_positive(
            self, "channels", "box_channels", "anchor_scale", "anchor_ratios", "proposals_before_nms",
            "train_proposals_before_nms", "proposals", "rpn_samples", "box_samples", "detections",
        )  # fmt: skip
        check_range("MaskRCNNConfig.score_threshold", self.score_threshold, 0, 1)
        check_range("MaskRCNNConfig.nms_threshold", self.nms_threshold, 0, 1)


class BoxPredictor(nn.Module):
    """Logits of every class and, last, of the background; deltas of every class."""

    def __init__(self, channels: int, num_classes: int):
        super().__init__()
        self.cls_score: nn.Linear = nn.Linear(channels, num_classes + 1)
        self.bbox_pred: nn.Linear = nn.Linear(channels, 4 * num_classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(n, channels) -> (n, C + 1), (n, C, 4)."""
        return self.cls_score(x), self.bbox_pred(x).unflatten(1, (-1, 4))


class MaskPredictor(nn.Module):
    """A mask of every class in twice the resolution."""

    def __init__(self, channels: int, num_classes: int):
        super().__init__()
        self.conv5_mask: nn.ConvTranspose2d = nn.ConvTranspose2d(channels, channels, 2, 2)
        self.mask_fcn_logits: nn.Conv2d = nn.Conv2d(channels, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.mask_fcn_logits(F.relu(self.conv5_mask(x)))


class MaskRCNN(nn.Module):
    """Images -> boxes, classes and masks of the objects in them.

    Images are a list of (in_chans, h, w) tensors of any sizes, resized and normalised by the caller. Boxes are x0, y0,
    x1, y1; labels count from 0.
    """

    official_names = DETECTOR

    def __init__(self, backbone: Pyramid, *, num_classes: int, config: MaskRCNNConfig):
        super().__init__()
        self.num_classes: int = num_classes
        self.config: MaskRCNNConfig = config
        self.strides: tuple[int, ...] = (*STRIDES, 2 * STRIDES[-1])
        self.backbone = backbone
        self.neck: Neck = Neck(backbone.channels, config.channels, extra_level=True)
        self.rpn_head: RPNHead = RPNHead(config.channels, len(config.anchor_ratios))
        self.box_head: TwoMLPHead = TwoMLPHead(config.channels * 7 * 7, config.box_channels)
        self.box_predictor: BoxPredictor = BoxPredictor(config.box_channels, num_classes)
        self.mask_head: MaskRCNNHeads = MaskRCNNHeads(config.channels, (config.channels,) * 4, 1)
        self.mask_predictor: MaskPredictor = MaskPredictor(config.channels, num_classes)
        self._initialise()

    def _initialise(self) -> None:
        for module in (*self.box_head.children(), *self.box_predictor.children(), *self.mask_head.modules()):
            if isinstance(module, (nn.Linear, nn.Conv2d)) and module.bias is not None:
                nn.init.zeros_(module.bias)
        for module in self.box_head.children():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
        nn.init.normal_(self.box_predictor.cls_score.weight, std=0.01)
        nn.init.normal_(self.box_predictor.bbox_pred.weight, std=0.001)
        for module in (*self.mask_head.modules(), *self.mask_predictor.children()):
            if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    # What is dense: a graph of fixed shape, which can be exported.

    def dense(self, images: Tensor) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """images: (B, in_chans, H, W). Returns of each of five levels the map (B, channels, h, w), the logits
        (B, A, h, w) that an anchor holds an object, and the deltas (B, 4 * A, h, w)."""
        maps = self.neck(self.backbone(images))
        logits, deltas = self.rpn_head(maps)
        return maps, logits, deltas

    def compile(self, **options: Any) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]  options by name only
        """torch.compile what is dense; the rest has shapes that depend on what is in the image."""
        self.backbone.compile(**options)
        self.neck.compile(**options)
        self.rpn_head.compile(**options)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the backbone's blocks in the backward pass."""
        network: Any = self.backbone.network
        network.set_grad_checkpointing(enable)

    def undecayed_as_mmdet(self) -> set[str]:
        """The parameters that mmdetection's rule of the papers does not decay, see `undecayed`."""
        return undecayed(self)

    # Inference

    def forward(
        self, images: Sequence[Tensor], sizes: Sequence[Sequence[int]] | None = None
    ) -> list[dict[str, Tensor]]:
        """Detections of each image, best first: boxes (n, 4), scores (n,), labels (n,), masks (n, h, w), bool.

        sizes: (height, width) of the images before they were resized; boxes and masks are then in that frame.
        `Ragged` images bring their sizes, and are computed one by one: what is said of an image is then a function of
        it alone, as in the published tests, whose batches have one.
        """
        if isinstance(images, Ragged):
            own = images.sizes or [(image.shape[1], image.shape[2]) for image in images]
            return [
                self([image], [size])[0]
                for image, size in zip(images, own if sizes is None else sizes, strict=True)
            ]
        batch, extents = self.batch(images)
        maps, logits, deltas = self.dense(batch)
        proposals = self.propose(logits, deltas, extents, self.config.proposals_before_nms)
        found = []
        for i, extent in enumerate(extents):
            own_maps = [m[i : i + 1] for m in maps[:-1]]
            found.append(
                self._detect(own_maps, proposals[i][0], extent, extent if sizes is None else sizes[i])
            )
        return found

    def _detect(
        self, maps: list[Tensor], proposals: Tensor, extent: Sequence[int], size: Sequence[int]
    ) -> dict[str, Tensor]:
        boxes, scores, labels = self.detect_boxes(maps, proposals, extent)
        probabilities = self.mask_logits(maps, boxes, labels).sigmoid()
        ratio = boxes.new_tensor([extent[1] / size[1], extent[0] / size[0]]).repeat(2)
        boxes = boxes / ratio
        return {
            "boxes": boxes,
            "scores": scores,
            "labels": labels,
            "masks": M.paste(probabilities, boxes, size),
        }

    def propose(
        self, logits: list[Tensor], deltas: list[Tensor], extents: Sequence[Sequence[int]], before_nms: int
    ) -> list[tuple[Tensor, Tensor]]:
        """Of each image the boxes (n, 4), best first, that may hold an object, and their scores (n,)."""
        flat_logits, flat_deltas = self._flat(logits, 1), self._flat(deltas, 4)
        found = []
        for i, extent in enumerate(extents):
            boxes, scores, level = [], [], []
            for k, anchor in enumerate(self.anchors(logits)):
                score = flat_logits[k][i, :, 0].sigmoid()
                best = score.sort(descending=True, stable=True).indices[:before_nms]
                box = B.clip(B.decode(anchor[best], flat_deltas[k][i, best], _RPN_STDS), extent)
                inside = (box[:, 2] > box[:, 0]) & (box[:, 3] > box[:, 1])
                boxes.append(box[inside])
                scores.append(score[best][inside])
                level.append(torch.full_like(scores[-1], k, dtype=torch.long))
            box, score = torch.cat(boxes), torch.cat(scores)
            kept = B.suppress(box, score, torch.cat(level), 0.7)[: self.config.proposals]
            found.append((box[kept], score[kept]))
        return found

    def detect_boxes(
        self, maps: list[Tensor], proposals: Tensor, extent: Sequence[int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes, scores and labels of one image, in the frame of the network, best first."""
        logits, deltas = self.box_outputs(maps, [proposals])
        scores = logits.softmax(-1)[:, :-1]
        every = B.clip(B.decode(proposals[:, None], deltas, _BOX_STDS), extent)
        row, label = (scores > self.config.score_threshold).nonzero().unbind(1)
        boxes, scores = every[row, label], scores[row, label]
        kept = B.suppress(boxes, scores, label, self.config.nms_threshold)[: self.config.detections]
        return boxes[kept], scores[kept], label[kept]

    def box_outputs(self, maps: list[Tensor], boxes: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Logits (n, C + 1) and deltas (n, C, 4) of the boxes of all images, at least in float32."""
        features = M.region_features(maps, STRIDES, boxes, 7)
        logits, deltas = self.box_predictor(self.box_head(features))
        return _at_least_float32(logits), _at_least_float32(deltas)

    def mask_logits(self, maps: list[Tensor], boxes: Tensor, labels: Tensor) -> Tensor:
        """Logits (n, 28, 28) of the masks of one image's boxes (n, 4), each for its label (n,)."""
        logits = self.mask_predictor(self.mask_head(M.region_features(maps, STRIDES, [boxes], 14)))
        return _at_least_float32(logits[torch.arange(len(labels), device=labels.device), labels])

    # Training

    def loss(self, images: Sequence[Tensor], targets: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """The five losses under their published names; what is minimised is their sum.

        targets: of each image boxes (m, 4) in its frame, labels (m,) from 0 on, masks (m, h, w); m may be 0.

        Raises ValueError for targets that do not fit, naming image and entry.
        """
        check_targets(images, targets, self.num_classes)
        batch, extents = self.batch(images)
        maps, logits, deltas = self.dense(batch)
        with torch.no_grad():
            proposals = self.propose(logits, deltas, extents, self.config.train_proposals_before_nms)
        found = self._rpn_losses(logits, deltas, extents, targets)
        return found | self._region_losses(
            maps[:-1], [boxes for boxes, _ in proposals], batch.shape[2:], targets
        )

    def _rpn_losses(
        self,
        logits: list[Tensor],
        deltas: list[Tensor],
        extents: Sequence[Sequence[int]],
        targets: Sequence[dict[str, Tensor]],
    ) -> dict[str, Tensor]:
        sizes = [t.shape[2:] for t in logits]
        anchors = torch.cat(self.anchors(logits))
        flat_logits, flat_deltas = (
            torch.cat(self._flat(logits, 1), 1)[..., 0],
            torch.cat(self._flat(deltas, 4), 1),
        )
        cls_loss = box_loss = flat_logits.new_zeros(())
        count = 0
        for i, target in enumerate(targets):
            padded = [_padded(side) for side in extents[i]]
            inside = B.cells_inside(sizes, self.strides, padded, len(self.config.anchor_ratios)).to(
                anchors.device
            )
            inside = inside.nonzero()[:, 0]
            objects = target["boxes"].to(anchors.device, torch.float32)
            assigned = B.assign(
                anchors[inside], objects, negative_below=0.3, positive_from=0.7, low_quality_from=0.3
            )
            positive, negative = B.sample(assigned, self.config.rpn_samples, 0.5)
            count += max(len(positive), 1) + max(len(negative), 1)
            own, wanted = inside[positive], objects[assigned[positive] - 1]
            cls_loss = cls_loss + _bce(flat_logits[i, own], 1.0) + _bce(flat_logits[i, inside[negative]], 0.0)
            box_loss = (
                box_loss + (flat_deltas[i, own] - B.encode(anchors[own], wanted, _RPN_STDS)).abs().sum()
            )
        return {"loss_rpn_cls": cls_loss / count, "loss_rpn_bbox": box_loss / count}

    def _region_losses(
        self,
        maps: list[Tensor],
        proposals: list[Tensor],
        canvas: Sequence[int],
        targets: Sequence[dict[str, Tensor]],
    ) -> dict[str, Tensor]:
        sampled, labels, positives, wanted, cells = [], [], [], [], []
        for boxes, target in zip(proposals, targets, strict=True):
            objects = target["boxes"].to(boxes.device, torch.float32)
            assigned = B.assign(boxes, objects, negative_below=0.5, positive_from=0.5, low_quality_from=0.5)
            # The objects themselves stand in front, each for itself.
            own = torch.arange(1, len(objects) + 1, device=boxes.device)
            boxes, assigned = torch.cat([objects, boxes]), torch.cat([own, assigned])
            positive, negative = B.sample(assigned, self.config.box_samples, 0.25)
            index = assigned[positive] - 1
            sampled.append(boxes[torch.cat([positive, negative])])
            background = torch.full_like(negative, self.num_classes)
            labels.append(torch.cat([target["labels"].to(index)[index], background]))
            positives.append(boxes[positive])
            wanted.append(objects[index])
            masks = _on_canvas(target["masks"].to(boxes.device), canvas)
            cells.append(M.mask_targets(masks, index, boxes[positive], 28))
        label = torch.cat(labels)
        logits, deltas = self.box_outputs(maps, sampled)
        row = (label < self.num_classes).nonzero()[:, 0]
        aims = B.encode(torch.cat(positives), torch.cat(wanted), _BOX_STDS)
        box_loss = (deltas[row, label[row]] - aims).abs().sum() / max(1, len(label))
        mask = self.mask_predictor(self.mask_head(M.region_features(maps, STRIDES, positives, 14)))
        mask = _at_least_float32(mask)[torch.arange(len(row), device=row.device), label[row]]
        aim = torch.cat(cells).to(mask.dtype)
        mask_loss = F.binary_cross_entropy_with_logits(mask, aim, reduction="sum") / max(1, aim.numel())
        cls_loss = F.cross_entropy(logits, label, reduction="sum") / max(1, len(label))
        return {"loss_cls": cls_loss, "loss_bbox": box_loss, "loss_mask": mask_loss}

    # Shapes

    def batch(self, images: Sequence[Tensor]) -> tuple[Tensor, list[tuple[int, int]]]:
        """Images in one tensor, zeros at their right and bottom up to a multiple of 32; the (h, w) of each.

        Raises ValueError for what is no list of (in_chans, h, w) tensors.
        """
        if not len(images):
            raise ValueError("images is empty: expected at least one (in_chans, h, w) tensor")
        for i, image in enumerate(images):
            if image.ndim != 3 or image.shape[0] != images[0].shape[0] or not image.numel():
                raise ValueError(
                    f"images[{i}] has shape {tuple(image.shape)}: expected ({images[0].shape[0]}, h, w)"
                )
        extents = [(image.shape[1], image.shape[2]) for image in images]
        height, width = (_padded(max(sides)) for sides in zip(*extents, strict=True))
        return torch.stack([_on_canvas(image, (height, width)) for image in images]), extents

    def anchors(self, logits: Sequence[Tensor]) -> list[Tensor]:
        """Anchors of the levels of the RPN's maps, (n, 4) each, at least in float32."""
        dtype = torch.promote_types(logits[0].dtype, torch.float32)
        sizes = [t.shape[2:] for t in logits]
        made = B.anchors(sizes, self.strides, self.config.anchor_scale, self.config.anchor_ratios, dtype)
        return [a.to(logits[0].device) for a in made]

    def _flat(self, maps: Sequence[Tensor], values: int) -> list[Tensor]:
        """(B, A * values, h, w) -> (B, h * w * A, values), in the order of the anchors."""
        return [_at_least_float32(t).permute(0, 2, 3, 1).reshape(t.shape[0], -1, values) for t in maps]


def _padded(side: int) -> int:
    return -(-side // _MULTIPLE) * _MULTIPLE


def _on_canvas(image: Tensor, canvas: Sequence[int]) -> Tensor:
    """(..., h, w) -> (..., *canvas), zeros at right and bottom."""
    height, width = image.shape[-2:]
    return F.pad(image, (0, canvas[1] - width, 0, canvas[0] - height))


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _bce(logits: Tensor, target: float) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, target), reduction="sum")
