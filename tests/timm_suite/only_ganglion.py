"""pytest plugin for timm's tests/test_models.py: its tests of "every model" become tests of ours.

timm collects what `timm.list_models` returns. Here that is this library's tiny models. An argument `module`
is left out: it names those of timm's files whose models have some feature, and ours have them all. Tests of
particular timm models are deselected.
"""

from __future__ import annotations

import timm

import ganglion

TINY = frozenset(ganglion.list_models("test_*"))
_list_models = timm.list_models


def _list_ours(filter="", module="", pretrained=False, **kwargs):
    if pretrained:  # would download
        return []
    return [name for name in _list_models(filter, **kwargs) if name.split(".")[0] in TINY]


timm.list_models = _list_ours
timm.list_pretrained = lambda *args, **kwargs: []


def pytest_collection_modifyitems(config, items):
    ours = [i for i in items if hasattr(i, "callspec") and _model_name(i) in TINY]
    config.hook.pytest_deselected(items=[i for i in items if i not in ours])
    items[:] = ours


def _model_name(item) -> str:
    return str(item.callspec.params.get("model_name", "")).split(".")[0]
