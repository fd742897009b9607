"""The names under which detectors and segmentors are published, and ours."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..models import Backbone, SparX, weight_names

_NECK: weight_names.Rules = (
    ("neck.lateral_convs.{i}.conv.*", "neck.fpn.inner_blocks.{i}.0.*"),
    ("neck.fpn_convs.{i}.conv.*", "neck.fpn.layer_blocks.{i}.0.*"),
)
#: Segmentors differ in the neck only.
SEGMENTOR: weight_names.Rules = _NECK
DETECTOR: weight_names.Rules = (
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
    return _published(model, model.state_dict())


def _published(model: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    backbones = [(name, module) for name, module in model.named_modules() if isinstance(module, Backbone)]
    if len(backbones) != 1:
        raise ValueError(
            f"{type(model).__name__} holds {len(backbones)} networks of this library: expected one"
        )
    rules: weight_names.Rules = model.official_names  # pyright: ignore[reportAssignmentType]  of every head here
    prefix, network = backbones[0]
    family = "sparx" if isinstance(network, SparX) else "vmamba"
    own = {name: state[f"{prefix}.{name}"] for name in network.state_dict()}
    backbone = weight_names.to_official(own, family)
    heads = {name: t for name, t in state.items() if not name.startswith("backbone.")}
    return {f"backbone.{name}": t for name, t in backbone.items()} | {
        weight_names.rename(name, rules, inverse=True): t for name, t in heads.items()
    }


#: Whose names hold one of these are not decayed by the papers' detectors and segmentors.
_UNDECAYED = ("norm", "absolute_pos_embed", "relative_position_bias_table")


def undecayed(model: nn.Module) -> set[str]:
    """The parameters of a detector or segmentor that the papers' rule does not decay: whose published name holds
    "norm", or is of position embeddings. Biases are decayed, and so are norms of other names, such as `bn`.

    Over a network of timm the names are ours.
    """
    names = published_names(model)
    return {name for name, _ in model.named_parameters() if any(part in names[name] for part in _UNDECAYED)}


def published_names(model: nn.Module) -> dict[str, str]:
    """Our names of a detector's or segmentor's weights, and the published ones; over a network of timm ours again."""
    state = model.state_dict()
    if not any(isinstance(module, Backbone) for module in model.modules()):
        return {name: name for name in state}
    # Numbers in place of the values say which tensor became which.
    names = [name for name, tensor in state.items() if tensor.numel()]
    numbered = dict(state)
    numbered |= {name: torch.tensor(float(i)).expand(state[name].shape) for i, name in enumerate(names)}
    made = _published(model, numbered).items()
    return {names[int(t.flatten()[0])]: published for published, t in made if t.numel()}
