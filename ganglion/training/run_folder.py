"""The folder of a run: one process at a time works in it, and nothing in it is lost that no run of ours wrote."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

from ..files import remove_temporaries, replacing
from .exported_folder import is_export
from .progress import LOG, is_log
from .run_checkpoints import list_checkpoints

if sys.platform != "win32":
    import fcntl

CONFIG, MODEL, CHECKPOINTS = "config.yaml", "model", "checkpoints"

_LOCK = ".ganglion.lock"

#: First line of a config.yaml that later runs in its folder may write anew.
_HEADER = "# Written by `ganglion fit`, which may write it anew: keep your own recipe elsewhere.\n"


class FolderError(OSError):
    """A folder that a run must not use."""


class RunFolder:
    """The folder of a run.

    path: it need not exist.
    """

    def __init__(self, path: Path):
        self.path = path
        self.config: Path = path / CONFIG
        self.model: Path = path / MODEL
        self.checkpoints: Path = path / CHECKPOINTS

    @contextlib.contextmanager
    def held(self, tell: Callable[[str], None] = print) -> Iterator[None]:
        """Hold the folder for this process; a folder made for it goes again if nothing was written.

        tell: is told of a process that ended without leaving the folder.

        Raises FolderError if another process holds it, naming that; OSError if it cannot be made.
        """
        made = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            with _lock(self.path / _LOCK, self.path, tell):
                remove_temporaries(self.path)
                for folder in (self.model, self.checkpoints):
                    if folder.is_dir():
                        remove_temporaries(folder)
                yield
        finally:
            with contextlib.suppress(OSError):  # not empty
                for folder in made:
                    folder.rmdir()

    def check_ours(self) -> None:
        """Raise FolderError, naming it, if a run here would overwrite or delete what no run of ours wrote."""
        begun = bool(list_checkpoints(self.checkpoints))
        for path, ours in (
            # A run that was begun leaves a foreign config.yaml as it is, see `write_config`.
            (self.config, begun or _starts_with(self.config, _HEADER)),
            (self.path / LOG, is_log(self.path / LOG)),
            (self.checkpoints / "best.ckpt", begun),
            (
                self.model,
                is_export(self.model) if begun else self.model.is_dir() and not os.listdir(self.model),
            ),
        ):
            if os.path.lexists(path) and not ours:
                raise FolderError(
                    f"{path} is there already, and would be overwritten, though this run did not write it. Choose "
                    "another --output, or move it away"
                )

    def write_config(self, content: str) -> None:
        """Write config.yaml, unless there is one that `ganglion fit` did not write."""
        if not os.path.lexists(self.config) or _starts_with(self.config, _HEADER):
            with replacing(self.config) as temporary:
                temporary.write_text(_HEADER + content)


def _starts_with(path: Path, text: str) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(len(text)) == text.encode()
    except OSError:
        return False


@contextlib.contextmanager
def _lock(path: Path, folder: Path, tell: Callable[[str], None]) -> Iterator[None]:
    """Hold a lock file, which says who holds it. The system's lock on it ends with the process, however that ends."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            holder = _holder(os.read(descriptor, 4096))
            if not _acquire(descriptor, holder):
                raise FolderError(
                    f"{folder} is in use: {holder or 'another process'} trains there. Wait for its end, end it, or "
                    "choose another --output"
                )
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(path.stat(), os.fstat(descriptor)):
                    break
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # its holder has just left and removed it
    try:
        if holder is not None:
            tell(f"taking over {folder} from {holder}, which ended without leaving it")
        me = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "since": f"{datetime.now():%Y-%m-%d %H:%M:%S}",
        }
        os.lseek(descriptor, 0, os.SEEK_SET)
        os.ftruncate(descriptor, 0)
        os.write(descriptor, json.dumps(me).encode())
        yield
    finally:
        os.ftruncate(descriptor, 0)  # Windows cannot remove what is open
        with contextlib.suppress(OSError):
            path.unlink()
        os.close(descriptor)


class _Holder:
    """Who wrote a lock file: a process of a host."""

    def __init__(self, host: str, pid: int, since: str):
        self.host, self.pid, self.since = host, pid, since

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} (since {self.since})"

    def may_live(self) -> bool:
        if self.host != socket.gethostname():
            return True
        if self.pid == os.getpid():
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except OSError:
            return True
        return True


def _holder(content: bytes) -> _Holder | None:
    try:
        found = json.loads(content)
        return _Holder(str(found["host"]), int(found["pid"]), str(found["since"]))
    except (ValueError, TypeError, KeyError):
        return None


def _acquire(descriptor: int, holder: _Holder | None) -> bool:
    if sys.platform != "win32":
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except (BlockingIOError, PermissionError):
            return False
        except OSError:
            pass  # a file system without locks
    return holder is None or not holder.may_live()
