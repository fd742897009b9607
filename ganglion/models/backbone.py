"""The four-stage skeleton of every network and timm's model contract, written once.

Notable: one stage loop serves all networks. What a layer reads of earlier layers is a value, a `Plan`; VMamba is the
plan in which nothing is read. Features that no later layer reads are dropped at once.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import wraps
from typing import Any, Literal

import torch
import torch.fx
from timm.layers import ClassifierHead, get_device_dtype
from timm.models._features import feature_take_indices
from timm.models._manipulate import reinit_non_persistent_buffers
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from ..config import check_choice
from ..layers.basic import Device, DType, PatchMerging
from ..layers.emulation import Float32Products
from ..ops.emulation import emulated
from .connections import STAGE_INPUT, Plan
from .weight_names import current_name

#: torch.jit.ignore as a bare decorator, which its types do not know: TorchScript leaves the method out.
no_script: Any = torch.jit.ignore


def _is_symbol(side: Any) -> bool:
    """Whether torch.export runs and takes this side of a map for dynamic."""
    if not torch.compiler.is_exporting() or isinstance(side, int):
        return False
    from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

    return not free_unbacked_symbols(side)


@torch.fx.wrap
def known_when_run(x: Tensor) -> Tensor:
    """A map (B, C, H, W), unchanged. While torch.export takes H and W for dynamic, they become numbers that the program
    reads off x: symbols would tie it to the sizes for which the answers to all that layers ask of them hold."""
    if not torch.jit.is_scripting():
        if _is_symbol(x.shape[2]):
            x = x.permute(0, 2, 3, 1)
            for axis in (1, 2):
                side: Any = torch.full((), x.shape[axis]).item()
                torch._check(side >= 1)
                x = x.narrow(axis, 0, side)
            return x.contiguous().permute(0, 3, 1, 2)
    return x


@torch.fx.wrap
def with_sides(x: Tensor, height: int, width: int) -> Tensor:
    """x, (B, C, H, W), unchanged. While torch.export runs, H and W are again the symbols `height` and `width`."""
    if not torch.jit.is_scripting():
        if _is_symbol(height):
            return x.narrow(2, 0, height).narrow(3, 0, width)
    return x


class Stage(nn.Module):
    """Downsampling, then the blocks, each of which reads the earlier features that the plan names."""

    # TorchScript cannot infer the type of an empty list, and reads annotations only where they are not strings.
    _reads: list[list[int]]
    _frees: list[list[int]]

    def __init__(
        self,
        downsample: nn.Module | None,
        blocks: Sequence[nn.Module],
        plan: Plan,
        *,
        dpe: Sequence[nn.Module] | None = None,
    ):
        """
        downsample: from (B, C, H, W) to the stage's maps, None for none.
        blocks: called with x or, where the plan names earlier features, with a list of x and those.
        dpe: SparX's dynamic position encoding of each block's input. It runs here and not in the block, which would
            hold both the input and its encoding all the time.

        Raises ValueError unless there is one block, and one encoding if any, for each layer of the plan.
        """
        super().__init__()
        if len(blocks) != plan.depth:
            raise ValueError(f"{len(blocks)} blocks for a plan of depth {plan.depth}")
        if dpe is not None and len(dpe) != plan.depth:
            raise ValueError(f"{len(dpe)} position encodings for a plan of depth {plan.depth}")
        self.downsample: nn.Module = downsample if downsample is not None else nn.Identity()
        self.dpe: nn.ModuleList = nn.ModuleList(dpe if dpe is not None else [nn.Identity() for _ in blocks])
        self.blocks: nn.ModuleList = nn.ModuleList(blocks)
        self.plan = plan
        self.grad_checkpointing = False
        self._reads = [list(read) for read in plan.reads]
        self._frees = [list(freed) for freed in plan.frees]
        self._keeps = [plan.keeps(i) for i in range(plan.depth)]
        self._keeps_input = plan.keeps(STAGE_INPUT)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the output of the last block, (B, D, ceil(H/2), ceil(W/2)) if the stage downsamples."""
        x = self.downsample(x)
        height, width = x.shape[2], x.shape[3]
        x = known_when_run(x)
        kept: dict[int, Tensor] = {}
        if self._keeps_input:
            kept[-1] = x
        for i, (dpe, block) in enumerate(zip(self.dpe, self.blocks)):
            earlier = [kept[j] for j in self._reads[i]]
            for j in self._frees[i]:
                kept.pop(j)
            if self.grad_checkpointing and not torch.jit.is_scripting():
                x = _checkpoint(dpe, block, x, earlier)
            else:
                x = dpe(x)
                x = block([x] + earlier) if len(earlier) > 0 else block(x)
            if self._keeps[i]:
                kept[i] = x
        return with_sides(x, height, width)


def _checkpoint(dpe: nn.Module, block: nn.Module, x: Tensor, earlier: list[Tensor]) -> Tensor:
    """The block's output. Its activations are computed again in the backward pass."""

    def run(x: Tensor, *earlier: Tensor) -> Tensor:
        x = dpe(x)
        return block([x, *earlier]) if earlier else block(x)

    if torch.compiler.is_compiling():  # a graph recomputes what gradients need, which statistics are not
        return checkpoint(run, x, *earlier, use_reentrant=False)
    contexts = lambda: (nullcontext(), _statistics_left_alone(block))  # noqa: E731
    return checkpoint(run, x, *earlier, use_reentrant=False, context_fn=contexts)


@contextmanager
def _statistics_left_alone(module: nn.Module) -> Iterator[None]:
    """BatchNorm layers in `module` do not update their running statistics. What they keep for backward is the same."""
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm)]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before):
            norm.momentum, norm.num_batches_tracked = momentum, count


def _rename(model: nn.Module, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
    """Names of an earlier version become those of this one."""
    for name in [n for n in state_dict if n.startswith(prefix) and n != current_name(n)]:
        state_dict[current_name(name)] = state_dict.pop(name)


def _restore_buffers(model: nn.Module, incompatible_keys: Any) -> None:
    """Compute the buffers that state dicts leave out: of a model made on the meta device they hold no values yet."""
    device = next((p.device for p in model.parameters() if not p.is_meta), None)
    for module in model.modules():
        for name in module._non_persistent_buffers_set:
            buffer = module.get_buffer(name)
            if buffer.is_meta and device is not None:
                setattr(module, name, torch.empty_like(buffer, device=device))
    reinit_non_persistent_buffers(model)


def float32_products(forward: Callable[..., Any]) -> Callable[..., Any]:
    """`forward`, with its linear layers and convolutions in float32 where this machine emulates the dtype of x."""

    @wraps(forward)
    def run(self, x: Tensor, *args, **kwargs):
        if not emulated(x):
            return forward(self, x, *args, **kwargs)
        with Float32Products():
            return forward(self, x, *args, **kwargs)

    return run


def _dilate(stage: Stage, dilation: int) -> None:
    """Take away the stride of `stage`, whose input is dilated by `dilation`, and dilate what follows twice as much."""
    for module in stage.downsample.modules():
        if isinstance(module, PatchMerging):
            module.stride, module.dilation = 1, dilation
        elif isinstance(module, nn.Conv2d):
            module.stride = (1, 1)
            _set_dilation(module, dilation)
    for part in (stage.dpe, stage.blocks):
        for module in part.modules():
            if isinstance(module, nn.Conv2d) and module.groups == module.in_channels:
                _set_dilation(module, 2 * dilation)


def _set_dilation(conv: nn.Conv2d, dilation: int) -> None:
    conv.dilation = (dilation, dilation)
    height, width = (int(p) * dilation for p in conv.padding)
    conv.padding = (height, width)
    conv._reversed_padding_repeated_twice = [width, width, height, height]


class OutNorms(nn.ModuleList):
    """One norm for each map of the pyramid. In a chain of the network's children it passes the features on."""

    def forward(self, x: Tensor) -> Tensor:
        return x


class Backbone(nn.Module):
    """Stem, stages, norm, pooling head: timm's model contract over any stages.

    Images (B, in_chans, H, W) of any size become logits (B, num_classes), or a pyramid of maps at strides 4, 8, 16, 32
    (p, 2 p, 4 p, 8 p for patch_size p) through `forward_intermediates` and timm's `features_only=True`.

    out_norms: one norm per stage, applied to every map of the pyramid but not to what the next stage receives: the
        form in which both papers attach detection and segmentation heads.
    output_stride: 32, 16 or 8, at which the maps stop shrinking. The stages from there on have no stride; their
        depthwise convolutions are dilated, as timm's (the scans and windows need nothing).

    Raises ValueError for another output_stride.
    """

    def __init__(
        self,
        *,
        stem: nn.Module,
        stages: Sequence[Stage],
        dims: Sequence[int],
        norm: nn.Module,
        patch_size: int = 4,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        pos_embed: nn.Module | None = None,
        out_norms: Sequence[nn.Module] | None = None,
        output_stride: int = 32,
        device: Device = None,
        dtype: DType = None,
    ):
        super().__init__()
        if output_stride not in (8, 16, 32):
            raise ValueError(f"output_stride is {output_stride!r}: expected 32, 16 or 8")
        self.num_classes: int = num_classes
        self.in_chans: int = in_chans
        self.num_features: int = dims[-1]
        self.head_hidden_size: int = dims[-1]
        self.grad_checkpointing: bool = False
        self.stem = stem
        self.pos_embed: nn.Module = pos_embed if pos_embed is not None else nn.Identity()
        self.stages: nn.Sequential = nn.Sequential(*stages)
        self.feature_info: list[dict[str, Any]] = []
        stride, dilation = patch_size, 1
        for i, (stage, dim) in enumerate(zip(stages, dims, strict=True)):
            if i and stride >= output_stride:
                _dilate(stage, dilation)
                dilation *= 2
            elif i:
                stride *= 2
            self.feature_info.append({"num_chs": dim, "reduction": stride, "module": f"stages.{i}"})
        self.has_out_norms: bool = out_norms is not None
        self.out_norms: nn.ModuleList = OutNorms(out_norms or [nn.Identity() for _ in stages])
        self.norm: nn.Module = norm
        self.head: ClassifierHead = ClassifierHead(
            dims[-1], num_classes, pool_type=global_pool, drop_rate=drop_rate, device=device, dtype=dtype
        )
        self.register_load_state_dict_pre_hook(_rename)
        self.register_load_state_dict_post_hook(_restore_buffers)

    @no_script
    def no_weight_decay(self) -> set[str]:
        """Parameters without weight decay besides one-dimensional ones, as published."""
        return {name for name, _ in self.named_parameters() if name.startswith("pos_embed")}

    @no_script
    def group_matcher(self, coarse: bool = False) -> dict:
        """Layer groups, for layer-wise learning-rate decay."""
        return {
            "stem": r"^stem|^pos_embed",
            "blocks": r"^stages\.(\d+)"
            if coarse
            else [(r"^stages\.(\d+)\.downsample", (0,)), (r"^stages\.(\d+)\.(?:blocks|dpe)\.(\d+)", None)]
            + [(r"^norm|^out_norms", (99999,))],
        }

    @no_script
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass instead of keeping its activations."""
        self.grad_checkpointing = enable
        stages: Any = self.stages
        for stage in stages:
            stage.grad_checkpointing = enable

    @no_script
    def get_classifier(self) -> nn.Module:
        """The last linear layer."""
        return self.head.fc

    def reset_classifier(
        self, num_classes: int, global_pool: str | None = None, reset_other: bool = False
    ) -> None:
        """Replace the last linear layer: 0 classes for none. `reset_other` also removes the final norm."""
        self.num_classes = num_classes
        if reset_other:
            self.norm = nn.Identity()
        placement: dict[str, Any] = get_device_dtype(self)
        self.head.reset(num_classes, global_pool, in_features=self.num_features, **placement)

    @float32_products
    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """The output of the last block of each stage in `indices` (all if None, the last n if an int).

        norm: apply the final norm to the last map. Models with `out_norms` normalise every map in any case.
        stop_early: leave out stages after the last one asked for. output_fmt: "NCHW" or "NHWC".
        Returns the maps, preceded by the final features unless `intermediates_only`.

        Raises ValueError for another `output_fmt`.
        """
        if not torch.jit.is_scripting():
            check_choice("output_fmt", output_fmt, Literal["NCHW", "NHWC"])
        taken, last = feature_take_indices(len(self.stages), indices)
        maps: list[Tensor] = []
        x = self.pos_embed(self.stem(x))
        for i, (stage, out_norm) in enumerate(zip(self.stages, self.out_norms)):
            if i <= last or not stop_early:
                x = stage(x)
            if i in taken:
                is_last = i == len(self.stages) - 1
                out = self.norm(x) if norm and is_last and not self.has_out_norms else out_norm(x)
                maps.append(out.permute(0, 2, 3, 1) if output_fmt == "NHWC" else out)
        if intermediates_only:
            return maps
        return (x if stop_early and last < len(self.stages) - 1 else self.norm(x)), maps

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove what the maps in `indices` do not need. Returns the indices."""
        taken, last = feature_take_indices(len(self.stages), indices)
        shortened = last < len(self.stages) - 1
        self.stages = self.stages[: last + 1]
        self.out_norms = self.out_norms[: last + 1]
        self.num_features = self.head_hidden_size = self.feature_info[last]["num_chs"]
        if prune_norm or shortened:
            self.norm = nn.Identity()
        if prune_head or shortened:
            self.reset_classifier(0, "")
        return taken

    @float32_products
    def forward_features(self, x: Tensor) -> Tensor:
        """Images -> the normalised last map, (B, C, ceil(H/32), ceil(W/32))."""
        x = self.pos_embed(self.stem(known_when_run(x)))
        if not torch.jit.is_scripting():
            if self.stages._forward_hooks or self.stages._forward_pre_hooks:
                return self.norm(self.stages(x))  # a call, which holds the stem's map to the end
        for stage in self.stages:
            x = stage(x)
        return self.norm(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """The last map -> logits, or the pooled features if `pre_logits`."""
        if not torch.jit.is_scripting():
            if torch.compiler.is_exporting() and self.head.global_pool.pool_type == "avg":
                x = x.mean((2, 3), keepdim=True)  # the pooling operator asks for sizes
        return self.head(x, pre_logits=pre_logits) if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, in_chans, H, W) -> logits (B, num_classes)."""
        return self.forward_head(self.forward_features(x))
