"""The names of the published checkpoints and ours.

A rule pairs a published name with ours. `{i}` and `{j}` stand for an index, `{i+1}` for the next one, `*` for
the rest of the name. The first rule that matches wins, in either direction; a name without a rule stays as it
is. Published stages end with their downsampling layer, ours begin with it, hence `{i+1}`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Literal, get_args

from torch import Tensor

from ..errors import unknown

Family = Literal["vmamba", "sparx"]
Rules = tuple[tuple[str, str], ...]

_THEIRS = "layers.{i}.blocks.{j}."
_OURS = "stages.{i}.blocks.{j}."

#: VMamba's releases.
VMAMBA: Rules = (
    ("pos_embed", "pos_embed.weight"),
    ("patch_embed.0.*", "stem.0.conv.*"),
    ("patch_embed.2.*", "stem.0.norm.*"),
    ("patch_embed.5.*", "stem.1.conv.*"),
    ("patch_embed.7.*", "stem.1.norm.*"),
    (_THEIRS + "norm.*", _OURS + "norm1.*"),
    (_THEIRS + "op.conv2d.*", _OURS + "mixer.conv.*"),
    (_THEIRS + "op.out_norm.2.*", _OURS + "mixer.out_norm.1.*"),
    (_THEIRS + "op.*", _OURS + "mixer.*"),
    (_THEIRS + "*", _OURS + "*"),
    ("outnorm{i}.*", "out_norms.{i}.*"),
    ("classifier.norm.*", "norm.*"),
    ("classifier.head.*", "head.fc.*"),
)

#: Downsampling by patch merging ...
MERGING: Rules = (("layers.{i}.downsample.*", "stages.{i+1}.downsample.*"),)
#: ... or by a convolution.
STRIDED: Rules = (
    ("layers.{i}.downsample.1.*", "stages.{i+1}.downsample.conv.*"),
    ("layers.{i}.downsample.3.*", "stages.{i+1}.downsample.norm.*"),
)

#: A depthwise convolution in place of the norm after the scan.
DEPTHWISE_OUT_NORM: Rules = ((_THEIRS + "op.out_norm.1.*", _OURS + "mixer.out_norm.*"),)

#: VMamba before its v2, to the release names.
VMAMBA_OLD: Rules = (
    ("patch_embed.proj.*", "patch_embed.0.*"),
    ("patch_embed.norm.*", "patch_embed.2.*"),
    (_THEIRS + "ln_1.*", _THEIRS + "norm.*"),
    (_THEIRS + "self_attention.*", _THEIRS + "op.*"),
    ("norm.*", "classifier.norm.*"),
    ("head.*", "classifier.head.*"),
)

#: VMamba's single-file rewrite of 2025, to the release names.
VMAMBA_REWRITE: Rules = (
    (_THEIRS + "op.x_proj.weight", _THEIRS + "op.x_proj_weight"),
    (_THEIRS + "op.dt_projs.weight", _THEIRS + "op.dt_projs_weight"),
)
VMAMBA_REWRITE_MERGING: Rules = (
    ("layers.{i}.downsample.1.*", "layers.{i}.downsample.norm.*"),
    ("layers.{i}.downsample.2.*", "layers.{i}.downsample.reduction.*"),
)

#: SparX-Mamba: classification, detection (`op.scale`) and segmentation (`norm.{i}`).
SPARX: Rules = (
    ("patch_embed.0.*", "stem.0.conv.*"),
    ("patch_embed.1.*", "stem.0.norm.*"),
    ("patch_embed.3.*", "stem.1.conv.*"),
    ("patch_embed.4.*", "stem.1.norm.*"),
    ("patch_embed.6.*", "stem.2.conv.*"),
    ("patch_embed.7.*", "stem.2.norm.*"),
    ("layers.{i}.downsample.0.*", "stages.{i+1}.downsample.conv.*"),
    ("layers.{i}.downsample.1.*", "stages.{i+1}.downsample.norm.*"),
    (_THEIRS + "pos_embed.*", "stages.{i}.dpe.{j}.*"),
    (_THEIRS + "norm.*", _OURS + "norm1.*"),
    (_THEIRS + "layerscale_1.*", _OURS + "ls1.*"),
    (_THEIRS + "layerscale_2.*", _OURS + "ls2.*"),
    (_THEIRS + "op.d_norm.*", _OURS + "mixer.in_proj.d_norm.*"),
    (_THEIRS + "op.d_proj.*", _OURS + "mixer.in_proj.d_proj.*"),
    (_THEIRS + "op.q.*", _OURS + "mixer.in_proj.q.*"),
    (_THEIRS + "op.k.*", _OURS + "mixer.in_proj.k.*"),
    (_THEIRS + "op.v.*", _OURS + "mixer.in_proj.v.*"),
    (_THEIRS + "op.scale", _OURS + "mixer.in_proj.attention.scale"),
    (_THEIRS + "op.in_proj.0.*", _OURS + "mixer.in_proj.fusion.0.*"),
    (_THEIRS + "op.in_proj.2.*", _OURS + "mixer.in_proj.fusion.2.*"),
    (_THEIRS + "op.conv2d.*", _OURS + "mixer.conv.*"),
    (_THEIRS + "op.*", _OURS + "mixer.*"),
    (_THEIRS + "*", _OURS + "*"),
    ("classifier.0.*", "norm.*"),
    ("classifier.3.*", "head.fc.*"),
    ("norm.{i}.*", "out_norms.{i}.*"),
)

_TOKEN = re.compile(r"\{(\w)(\+1)?\}|\*")


@cache
def _compile(template: str) -> re.Pattern[str]:
    """`layers.{i}.*` -> a pattern with the groups `i` and `rest`."""
    parts, end = [], 0
    for token in _TOKEN.finditer(template):
        parts.append(re.escape(template[end : token.start()]))
        parts.append(f"(?P<{token[1]}>\\d+)" if token[1] else "(?P<rest>.+)")
        end = token.end()
    return re.compile("".join([*parts, re.escape(template[end:])]))


def _translate(name: str, source: str, target: str) -> str | None:
    match = _compile(source).fullmatch(name)
    if match is None:
        return None
    shifts = {token[1]: len(token[2] or "") // 2 for token in _TOKEN.finditer(source)}

    def fill(token: re.Match[str]) -> str:
        if not token[1]:
            return match["rest"]
        return str(int(match[token[1]]) - shifts[token[1]] + len(token[2] or "") // 2)

    return _TOKEN.sub(fill, target)


def rename(name: str, rules: Rules, *, inverse: bool = False) -> str:
    """A published name -> ours by the first rule that matches, or the other way round; as it is without one."""
    for theirs, ours in rules:
        renamed = _translate(name, ours, theirs) if inverse else _translate(name, theirs, ours)
        if renamed is not None:
            return renamed
    return name


def detect(names: Iterable[str]) -> Family | None:
    """Which published layout the names follow; None if neither, for example because they are ours."""
    names = list(names)
    if any(name.startswith("patch_embed.1.") for name in names):
        return "sparx"
    if any(name.startswith("patch_embed.") for name in names):
        return "vmamba"
    return None


def current_name(name: str) -> str:
    """What one of our names is called in this version."""
    return name.replace(".in_proj.fuse.", ".in_proj.fusion.")


def to_ganglion(names: Iterable[str]) -> dict[str, str]:
    """Published names -> ours, for the names of one network in any published layout.

    Names in no published layout are ours, of this or an earlier version. Shapes may still differ: some published
    weights are (out, in, 1, 1) where ours are (out, in). `ganglion.load_checkpoint` sees to both.
    """
    published = list(names)
    family = detect(published)
    if family is None:
        return {name: current_name(name) for name in published}
    if family == "sparx":
        return {name: rename(name, SPARX) for name in published}

    renamed = published
    for rules in (VMAMBA_OLD, VMAMBA_REWRITE):
        renamed = [rename(name, rules) for name in renamed]
    if any(re.fullmatch(r"layers\.\d+\.downsample\.2\.weight", name) for name in renamed):
        renamed = [rename(name, VMAMBA_REWRITE_MERGING) for name in renamed]
    merging = any(".downsample.reduction." in name for name in renamed)
    rules = (MERGING if merging else STRIDED) + DEPTHWISE_OUT_NORM + VMAMBA
    return {old: rename(name, rules) for old, name in zip(published, renamed, strict=True)}


def to_official(state_dict: Mapping[str, Tensor], family: Family) -> dict[str, Tensor]:
    """Our state dict -> one in the published names and shapes, which the published code loads.

    family: "vmamba" (release names) or "sparx". Tensors are views where the shape changes.

    Raises ValueError for another family.
    """
    if family == "sparx":
        out = {}
        for name, tensor in state_dict.items():
            theirs = rename(name, SPARX, inverse=True)
            out[theirs] = _sparx_shape(theirs, tensor)
        return out
    if family != "vmamba":
        raise ValueError(unknown("family", family, get_args(Family)))
    merging = any(".downsample.reduction." in name for name in state_dict)
    depthwise = any(name.endswith(".out_norm.weight") and t.ndim == 4 for name, t in state_dict.items())
    rules = MERGING if merging else STRIDED
    rules = rules + (DEPTHWISE_OUT_NORM if depthwise else ()) + VMAMBA
    return {rename(name, rules, inverse=True): tensor for name, tensor in state_dict.items()}


def _sparx_shape(name: str, tensor: Tensor) -> Tensor:
    """SparX holds its projections as 1x1 convolutions, the scan's as one grouped 1-D convolution."""
    if name.endswith(".x_proj_weight"):
        return tensor.reshape(-1, tensor.shape[-1], 1)
    if name.endswith(".weight") and name.startswith("layers.") and tensor.ndim == 2:
        return tensor[:, :, None, None]
    return tensor
