"""The names of `weight_names` under their former module, which programs import."""

from .weight_names import Family, Rules, detect, rename, to_ganglion, to_official

__all__ = ["Family", "Rules", "detect", "rename", "to_ganglion", "to_official"]
