"""Errors as the user of `ganglion fit` has to read them: one line, which names the option as it was written."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import lightning.pytorch as pl

from ..errors import unknown

#: Which option holds the fields of a class that checks them itself.
_HOLDS = {
    "OptimizerConfig": "optimizer",
    "ScheduleConfig": "schedule",
    "MixingConfig": "model.mixing",
    "Augmentation": "data.augmentation",
    "EMA": "ema",
    "Checkpoints": "checkpoint",
    "Progress": "progress",
    "VMambaConfig": "model.model_args",
    "SparXConfig": "model.model_args",
}


def in_options(message: str, argv: Sequence[str]) -> str:
    """`OptimizerConfig.lr is -1` -> `optimizer.lr is -1`, or `--optimizer.lr is -1` if that option is in argv."""
    message = re.sub(rf"\b({'|'.join(_HOLDS)})\.(?=[a-z])", lambda m: f"{_HOLDS[m[1]]}.", message)
    for name in {word.partition("=")[0][2:].rstrip("+") for word in argv if word.startswith("--")}:
        message = re.sub(rf"(?<![\w.-]){re.escape(name)}(?![\w.]*\w)", f"--{name}", message)
    return message


def parser_error(message: str) -> str:
    """What jsonargparse says of a value, in a line."""
    if denied := re.search(r"Importing '([\w.]+)' is not allowed", message):
        key = re.match(r'Parser key "([^"]+)"', message)
        return (
            f"{key[1] + ': ' if key else ''}{denied[1]} is not of Lightning or Ganglion, and its code would run: "
            "--allow-code permits it"
        )
    found = re.match(r'Parser key "([^"]+)":?\s*(.*)', message, re.DOTALL)
    if found is None:
        return " ".join(message.split())
    key, text = found.groups()
    given = re.search(r"(?:Given|Got) value: (.*)", text)
    value = given[1] if given else ""
    if option := re.search(r"class_path '[\w.]*?(\w+)'.*Option '([\w.]+)' is not accepted", text, re.DOTALL):
        return f"{key}.{option[2]}: {option[1]} has no such field"
    if option := re.search(r"class_path '[\w.]*?(\w+)'[^\0]*?arguments are required: (.*)", text):
        return f"{key}: {option[1]} needs {', '.join(f'{key}.{name}' for name in option[2].split(', '))}"
    if option := re.search(r"Import path does not correspond to a subclass of (\w+)", text):
        return f"{key} is {value}: expected a {option[1]}"
    if "dot import path" in text and re.fullmatch(r"[\w.]+", value):
        return f"{key}: {unknown('class', value, _classes(key))}"
    reasons = []
    for line in re.sub(r"\.? ?(?:Given|Got) value: .*", "", text).splitlines():
        line = re.sub(r"<class '(?:[\w.]*\.)?(\w+)'>", r"\1", line.strip(" -")).replace("typing.", "")
        if not re.match(
            r"(Does not validate|Subtypes:|Errors:|Given value type|Expected a NoneType|$)", line
        ):
            reasons.append(re.sub(r"^Expected an? (.*)", r"expected \1", line))
    return (f"{key} is {value}: " if given else f"{key}: ") + "; ".join(dict.fromkeys(reasons))


def _classes(key: str) -> Iterable[str]:
    """Names of Lightning's classes that such an option takes."""
    module = {"trainer.callbacks": "callbacks", "trainer.logger": "loggers", "trainer.profiler": "profilers"}
    return [name for name in dir(getattr(pl, module.get(key, "strategies"))) if name[:1].isupper()]
