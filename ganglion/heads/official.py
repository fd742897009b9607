"""The names under which detectors and segmentors are published, and ours."""

from __future__ import annotations

from torch import Tensor, nn

from ..models import Backbone, SparX, official

_NECK: official.Rules = (
    ("neck.lateral_convs.{i}.conv.*", "neck.fpn.inner_blocks.{i}.0.*"),
    ("neck.fpn_convs.{i}.conv.*", "neck.fpn.layer_blocks.{i}.0.*"),
)
#: Segmentors differ in the neck only.
SEGMENTOR: official.Rules = _NECK
DETECTOR: official.Rules = (
    *_NECK,
    ("rpn_head.rpn_conv.*", "rpn_head.conv.0.0.*"),
    ("rpn_head.rpn_cls.*", "rpn_head.cls_logits.*"),
    ("rpn_head.rpn_reg.*", "rpn_head.bbox_pred.*"),
    ("roi_head.bbox_head.shared_fcs.0.*", "box_head.fc6.*"),
    ("roi_head.bbox_head.shared_fcs.1.*", "box_head.fc7.*"),
    ("roi_head.bbox_head.fc_cls.*", "box_predictor.cls_score.*"),
    ("roi_head.bbox_head.fc_reg.*", "box_predictor.bbox_pred.*"),
    ("roi_head.mask_head.convs.{i}.conv.*", "mask_head.{i}.0.*"),
    ("roi_head.mask_head.upsample.*", "mask_predictor.conv5_mask.*"),
    ("roi_head.mask_head.conv_logits.*", "mask_predictor.mask_fcn_logits.*"),
)


def to_official(model: nn.Module) -> dict[str, Tensor]:
    """The weights of a detector or segmentor in the published names and shapes, which the published code loads.

    Raises ValueError unless its backbone is a network of this library.
    """
    backbones = [module for module in model.modules() if isinstance(module, Backbone)]
    if len(backbones) != 1:
        raise ValueError(
            f"{type(model).__name__} holds {len(backbones)} networks of this library: expected one"
        )
    rules: official.Rules = model.official_names  # pyright: ignore[reportAssignmentType]  of every head here
    family = "sparx" if isinstance(backbones[0], SparX) else "vmamba"
    backbone = official.to_official(backbones[0].state_dict(), family)
    heads = {name: t for name, t in model.state_dict().items() if not name.startswith("backbone.")}
    return {f"backbone.{name}": t for name, t in backbone.items()} | {
        official.rename(name, rules, inverse=True): t for name, t in heads.items()
    }
