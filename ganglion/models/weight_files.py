"""Reading files of weights: from a path or a URL, as data only, and only if they are whole.

A file is safetensors, or torch's, which its `weights_only` unpickler reads. Archives are checked record by record
first: torch does not look at the checksums that it writes.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import pickle
import re
import socket
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.error import URLError
from urllib.parse import urlparse

import safetensors
import safetensors.torch
import torch

from ..files import find_damage

if TYPE_CHECKING:
    from .weight_loading import LoadReport

#: Classes that training files hold beside the weights. They are read as empty placeholders and dropped.
_BYSTANDERS = (
    "mmengine.logging.history_buffer.HistoryBuffer",
    "numpy.core.multiarray._reconstruct",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray._reconstruct",
    "numpy._core.multiarray.scalar",
    "numpy.ndarray",
    "numpy.dtype",
)

#: Seconds without a byte after which a download counts as failed.
STALLED = 60.0

_EXPECTED = "Expected a .safetensors file or one written by torch.save."

_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, or that does not fit the model. The model is unchanged.

    report: what matched and what did not, when the file could be read; else None.
    """

    def __init__(self, message: str, report: LoadReport | None = None):
        super().__init__(message)
        self.report = report


def read_weights(source: str | os.PathLike[str], *, sha256: str | None = None) -> Any:
    """What a file of weights holds: for most a dictionary, of tensors or of the dictionaries of a training script.

    source: a path to a .safetensors file or one that torch.save wrote, or an https URL (kept in torch.hub's folder).
    sha256: of the file, at least its first 8 hexadecimal digits. For a URL whose file name ends in "-<digits>" they
        are taken from there, as torch.hub does.

    Tensors are on the CPU. Objects that training scripts save beside them are replaced by empty ones.

    Raises FileNotFoundError or another OSError for a file that cannot be opened; CheckpointError for one that is
    damaged, foreign, no regular file, or needs code to be read.
    """
    text = os.fspath(source)
    scheme = urlparse(text).scheme
    if len(scheme) > 1:  # one letter is a drive
        if scheme != "https":
            raise CheckpointError(f"{text!r}: expected a path, an https URL or a state dict, not {scheme!r}")
        path = _download(text, sha256)
    else:
        path = Path(text).expanduser()
        if path.is_dir():
            raise CheckpointError(
                f"{text!r} is a folder: pass the .safetensors or .pth file in it, or let timm read the "
                f"folder with timm.create_model('local-dir:{text}', pretrained=True)"
            )
        check_regular(path)
        if sha256 is not None:
            _check_sha256(path, sha256)
    return _read_file(path, text)


def check_regular(path: Path) -> None:
    """Raise FileNotFoundError without a file, CheckpointError for a pipe, socket or device, which never ends."""
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:  # ValueError: a zero byte
        raise FileNotFoundError(f"no checkpoint at {str(path)!r}") from error
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "no regular file")
        raise CheckpointError(f"{str(path)!r} is {kind}: expected a regular file")


def _download(url: str, sha256: str | None) -> Path:
    name = Path(urlparse(url).path).name
    in_name = torch.hub.HASH_REGEX.search(name)
    expected = sha256 or (in_name[1] if in_name else None)
    # Many releases call their file the same, so the folder is the URL's.
    path = Path(torch.hub.get_dir()) / "checkpoints" / hashlib.sha256(url.encode()).hexdigest()[:16] / name
    if path.is_file():
        if expected is not None:
            _check_sha256(path, expected)
        return path
    hint = f". Put the file there by hand: {path}"
    if offline():
        raise CheckpointError(f"GANGLION_OFFLINE is set: {url!r} is not downloaded{hint}")
    path.parent.mkdir(parents=True, exist_ok=True)
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(before or STALLED)
    try:
        torch.hub.download_url_to_file(url, str(path), hash_prefix=expected)
    except (URLError, OSError, RuntimeError) as error:  # RuntimeError: another hash
        raise CheckpointError(f"cannot download {url!r}: {error}{hint}") from error
    finally:
        socket.setdefaulttimeout(before)
    if (damage := _damage(path)) is not None:
        path.unlink()
        raise CheckpointError(f"what came from {url!r} is damaged and was removed: {damage}. Try again{hint}")
    return path


def offline() -> bool:
    """Whether the environment forbids the network, by GANGLION_OFFLINE."""
    return os.environ.get("GANGLION_OFFLINE", "0") not in ("", "0")


def _damage(path: Path) -> str | None:
    """What is wrong with a file that has just come: a connection may end early without an error."""
    with path.open("rb") as file:
        head = file.read(8)
    if head.startswith(b"PK"):
        return find_damage(path)
    if not head:
        return "it is empty"
    if path.suffix == ".safetensors":
        try:
            with safetensors.safe_open(path, "pt"):
                return None
        except (OSError, safetensors.SafetensorError) as error:
            return str(error)
    return None


def _check_sha256(path: Path, expected: str) -> None:
    if not re.fullmatch(r"[0-9a-fA-F]{8,64}", expected):
        raise ValueError(f"sha256 {expected!r}: expected 8 to 64 hexadecimal digits")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if not found.startswith(expected.lower()):
        raise CheckpointError(
            f"{str(path)!r} has sha256 {found}, expected {expected}: damaged, or another file"
        )


class _Placeholder:
    """Stands for a bystander: takes any construction and keeps nothing."""

    def __init__(self, *args: object):
        pass

    def __setstate__(self, state: object) -> None:
        pass


def _read_file(path: Path, name: str) -> Any:
    with path.open("rb") as file:
        head = file.read(64)
    if head[8:9] != b"{" and not head.startswith((b"PK", b"\x80")):
        what = f"begins with {head[:24]!r}, which is no checkpoint" if head else "is empty"
        raise CheckpointError(f"{name!r} {what}. {_EXPECTED}")
    if head.startswith(b"PK") and (damage := find_damage(path)) is not None:
        raise CheckpointError(f"{name!r} is truncated or damaged: {damage}. {_EXPECTED}")
    try:
        if head[8:9] == b"{":
            return safetensors.torch.load_file(path)
        placeholders: list[Any] = [(_Placeholder, bystander) for bystander in _BYSTANDERS]
        with torch.serialization.safe_globals([argparse.Namespace, *placeholders]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a reader raises over a damaged file
        refused = (
            re.search(r"GLOBAL (\S+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
        )
        if refused is None:
            raise CheckpointError(
                f"{name!r} is truncated or damaged, or a pickle of something else ({_reason(error)}). {_EXPECTED}"
            ) from error
        raise CheckpointError(
            f"{name!r} holds {refused[1]}, which is not a tensor and could run code when loaded, so it is "
            "not. If you trust the file, save its state dict alone to a new file where it was made."
        ) from error


def _reason(error: Exception) -> str:
    """One line of what a reader said; torch's advice to turn off `weights_only` is not passed on."""
    line = str(error).strip().partition("\n")[0][:200]
    return type(error).__name__ if "weights_only" in line or not line else line
