"""What the user of `ganglion fit` reads: errors, in a line that names the option as it was written, and warnings."""

from __future__ import annotations

import logging
import re
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

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

#: What a warning has to begin with, or contain, to be shown: drivers that do not fit, more workers than cores.
_SHOWN = ("ganglion: ", ".*CUDA", ".*NVIDIA driver", ".*worker processes in total")


def in_options(message: str, argv: Sequence[str]) -> str:
    """`OptimizerConfig.lr is -1` -> `optimizer.lr is -1`, or `--optimizer.lr is -1` if that option is in argv."""
    message = re.sub(rf"\b({'|'.join(_HOLDS)})\.(?=[a-z])", lambda m: f"{_HOLDS[m[1]]}.", message)
    for name in {word.partition("=")[0][2:].rstrip("+") for word in argv if word.startswith("--")}:
        after = r"(?!\w)" if "." in name else r"(?=\.\w)"  # `optimizer` alone may be the word
        message = re.sub(rf"(?<![\w.-]){re.escape(name)}{after}", f"--{name}", message)
        group, _, last = name.rpartition(".")
        if group == "trainer" and f"--{name}" not in message:  # Lightning calls them by their last names
            bare = "" if "_" in last else "`"
            message = re.sub(rf"(?<![\w.-]){bare}{re.escape(last)}\b", f"{bare}--{name}", message, count=1)
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


def quiet_libraries() -> None:
    """Show our own warnings, each in a line, and of the libraries' only those that the user can do something about.

    Where Python was told which warnings to show (-W, PYTHONWARNINGS), it shows these.
    """
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    if not sys.warnoptions:
        warnings.filterwarnings("ignore", message=rf"(?s)(?!{'|'.join(_SHOWN)})")
        warnings.formatwarning = _one_line


@contextmanager
def profile_last() -> Iterator[None]:
    """Print what `trainer.profiler` found out, after all else; Lightning logs it."""
    logger = logging.getLogger("lightning.pytorch.profilers")
    found: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: found.append(record.getMessage())
    level, propagate = logger.level, logger.propagate
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate
        for text in found:
            print(text.rstrip(), flush=True)


def _one_line(message: Warning | str, *where: Any) -> str:
    return f"ganglion fit: warning: {' '.join(str(message).split()).removeprefix('ganglion: ')}\n"
