"""Modules under the names of `mamba_ssm`, `causal_conv1d` and the extensions of VMamba's descendants, computed here.

import ganglion.compat.mamba_ssm
ganglion.compat.mamba_ssm.install()

from mamba_ssm.ops.selective_scan_interface import selective_scan_fn   # in code that is not ours
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Collection
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from .. import ops
from ..errors import unknown
from . import causal_conv1d, extensions, layer_norms, mamba_inner, refused
from .mamba_simple import Mamba


class StandIn(ModuleType):
    """A module of ours under another package's name."""

    def __init__(self, name: str, names: dict[str, Any], *, is_package: bool):
        super().__init__(name, f"Stands in for {name}; computed by ganglion.compat.mamba_ssm.")
        self.__spec__ = ModuleSpec(name, None, origin="ganglion.compat.mamba_ssm", is_package=is_package)
        if is_package:
            self.__path__ = []
        self.__dict__.update(names)

    def __repr__(self) -> str:
        return f"<module {self.__name__!r}: a stand-in by ganglion.compat.mamba_ssm>"

    def __getattr__(self, name: str) -> Any:
        have = ", ".join(sorted(key for key in self.__dict__ if not key.startswith("_"))) or "only submodules"
        raise AttributeError(f"the stand-in {self.__name__!r} of ganglion has no {name!r}. It has: {have}")


_SCAN = {"selective_scan_fn": ops.selective_scan, "selective_scan_ref": ops.selective_scan_reference}
_CONV = {
    "causal_conv1d_fn": causal_conv1d.causal_conv1d_fn,
    "causal_conv1d_ref": causal_conv1d.causal_conv1d_fn,
    "causal_conv1d_update": causal_conv1d.causal_conv1d_update,
}
_CONV_EXTENSION = {
    "causal_conv1d_fwd": causal_conv1d.extension_fwd,
    "causal_conv1d_bwd": causal_conv1d.extension_bwd,
}
_NORMS = {name: getattr(layer_norms, name) for name in ("RMSNorm", "layer_norm_fn", "rms_norm_fn")}
_INNER = {
    name: getattr(mamba_inner, name)
    for name in ("mamba_inner_fn", "mamba_inner_ref", "mamba_inner_fn_no_out_proj", "bimamba_inner_fn")
}

#: What every stand-in has, by its full name.
MODULES: dict[str, dict[str, Any]] = {
    "mamba_ssm": {
        **_SCAN,
        "Mamba": Mamba,
        "mamba_inner_fn": mamba_inner.mamba_inner_fn,
        "__version__": "2.2.4+ganglion",
    },
    "mamba_ssm.ops": {},
    "mamba_ssm.ops.selective_scan_interface": {**_SCAN, **_INNER},
    "mamba_ssm.ops.triton": {},
    "mamba_ssm.ops.triton.layernorm": _NORMS,
    "mamba_ssm.ops.triton.layer_norm": _NORMS,
    "mamba_ssm.modules": {},
    "mamba_ssm.modules.mamba_simple": {"Mamba": Mamba},
    "mamba_ssm.utils": {},
    "mamba_ssm.utils.generation": {"GenerationMixin": refused.GenerationMixin},
    "mamba_ssm.utils.hf": {
        "load_config_hf": refused.load_config_hf,
        "load_state_dict_hf": refused.load_state_dict_hf,
    },
    "causal_conv1d": {**_CONV, "__version__": "1.5.0+ganglion"},
    "causal_conv1d.causal_conv1d_interface": _CONV,
    "causal_conv1d.cpp_functions": {
        f"{name}_function": function for name, function in _CONV_EXTENSION.items()
    },
    "causal_conv1d_cuda": _CONV_EXTENSION,
    "selective_scan": {
        "selective_scan_fn": extensions.selective_scan_fn,
        "selective_scan_ref": extensions.selective_scan_ref,
    },
    "selective_scan_cuda": {"fwd": extensions.fwd, "bwd": extensions.bwd},
    "selective_scan_cuda_core": {"fwd": extensions.core_fwd, "bwd": extensions.core_bwd},
    "selective_scan_cuda_oflex": {"fwd": extensions.oflex_fwd, "bwd": extensions.core_bwd},
}
#: The importable packages among them.
PACKAGES = tuple(name for name in MODULES if "." not in name)

_replaced: dict[str, ModuleType] = {}


def install(*, replace: bool = False, keep: Collection[str] = ()) -> None:
    """Put the stand-ins of `MODULES` in place, for this process. A second call changes nothing.

    replace: also where the real packages are installed or imported.
    keep: names of `PACKAGES` that get no stand-in. A project that carries its own Python code of `mamba_ssm` along
        keeps "mamba_ssm", and has the extensions under it stood in for.

    Raises ImportError if one of the real packages is there and neither kept nor to be replaced; nothing is changed
    then. ValueError for a name in `keep` that has no stand-in.
    """
    for name in keep:
        if name not in PACKAGES:
            raise ValueError(unknown("keep", name, PACKAGES))
    real = [name for name in PACKAGES if name not in keep and _is_real(name)]
    if real and not replace:
        raise ImportError(
            f"{', '.join(real)}: the real package is installed, and is left alone. "
            "install(replace=True), or `python -m ganglion.compat --replace`, has ganglion stand in for it; "
            f"keep={real[:1]}, or `--keep {real[0]}`, leaves it and has ganglion stand in for the others"
        )
    for name in [n for n in sys.modules if n.partition(".")[0] in PACKAGES]:
        if name.partition(".")[0] not in keep and not isinstance(sys.modules[name], StandIn):
            _replaced[name] = sys.modules.pop(name)
    packages = {name.rpartition(".")[0] for name in MODULES} | {
        "mamba_ssm",
        "causal_conv1d",
        "selective_scan",
    }
    for name, names in MODULES.items():
        if name in sys.modules or name.partition(".")[0] in keep:
            continue
        sys.modules[name] = StandIn(name, names, is_package=name in packages)
        parent, _, last = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], last, sys.modules[name])


def uninstall() -> None:
    """Take the stand-ins away again, and put back what they replaced."""
    for name in MODULES:
        if isinstance(sys.modules.get(name), StandIn):
            del sys.modules[name]
    sys.modules.update(_replaced)
    _replaced.clear()


def _is_real(name: str) -> bool:
    """Whether the package of that name is imported or can be, and is not a stand-in."""
    if name in sys.modules:
        return not isinstance(sys.modules[name], StandIn)
    return importlib.util.find_spec(name) is not None
