"""Files as this library writes them: whole or not at all, never over what somebody else wrote, sealed if they matter.

A sealed file is a zip archive, such as torch.save writes, whose comment is a digest of all bytes before it. So one
comparison shows any damage, also where the archive's own checksums do not reach: its directory, its padding.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import socket
import stat
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

#: Names of temporary files: of which host and process, and the extension that some writers choose a format by.
_TEMPORARY = re.compile(r"\..*\.ganglion-[\w-]*-\d+\.tmp(\.[^.]*)?", re.DOTALL)

_MARK = b"ganglion sha256 "
_SEAL = re.compile(re.escape(_MARK) + rb"[0-9a-f]{64}")
_SEAL_BYTES = len(_MARK) + 64

_IS_FOLDER = 0x10
_END_OF_ARCHIVE, _END_BYTES = b"PK\x05\x06", 22


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str], *, durable: bool = False) -> Iterator[Path]:
    """Yield a temporary file beside `path`, which takes its place when the block ends, and vanishes if it raises.

    The file is there, empty, and may be written by its name. It gets the mode that the umask leaves, whatever the
    writer gave it. `path` is replaced at once: a reader finds the old content or the new.

    durable: on the disk when the block ends: a power cut after that loses nothing.

    Raises OSError.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.{_owner()}.tmp{path.suffix}")
    temporary.unlink(missing_ok=True)
    try:
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        mode = stat.S_IMODE(temporary.stat().st_mode)
        yield temporary
        os.chmod(temporary, mode)
        if durable:
            _sync(temporary)
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
    if durable:
        with contextlib.suppress(OSError):  # Windows cannot open folders
            _sync(path.parent)


def _owner() -> str:
    host = re.sub(r"[^\w-]", "-", socket.gethostname())
    return f"ganglion-{host}-{os.getpid()}"


def _sync(path: Path) -> None:
    # Windows flushes only what was opened for writing.
    descriptor = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_temporaries(folder: Path) -> None:
    """Remove what killed writers left in a folder. Only for one in which nobody else is writing."""
    for path in folder.glob(".*"):
        if _TEMPORARY.fullmatch(path.name):
            path.unlink(missing_ok=True)


def refuse_existing(path: str | os.PathLike[str], option: str, *, overwrite: bool = False) -> None:
    """Raise FileExistsError, naming the option, if there is something at `path` that must not be overwritten."""
    if not overwrite and os.path.lexists(path):
        raise FileExistsError(
            f"{option} {os.fspath(path)}: it is there already. Expected another name, or --overwrite"
        )


def seal(path: Path) -> None:
    """Seal a zip archive that has no comment: make the digest of its bytes its comment.

    Raises ValueError for another file; OSError.
    """
    with open(path, "r+b") as file:
        end, size = _end(file, _END_BYTES), file.tell()
        if not end.startswith(_END_OF_ARCHIVE) or end[-2:] != b"\0\0":
            raise ValueError(f"{path}: expected a zip archive without a comment")
        file.seek(size - 2)
        file.write(struct.pack("<H", _SEAL_BYTES))
        file.write(_MARK)
        file.flush()
        digest = _digest(file, size + len(_MARK))
        file.seek(0, os.SEEK_END)
        file.write(digest)


def is_sealed(path: Path) -> bool:
    """Whether a file ends in a seal, whatever its content is by now. Raises OSError."""
    with open(path, "rb") as file:
        return _SEAL.fullmatch(_end(file, _SEAL_BYTES)) is not None


def find_damage(path: Path) -> str | None:
    """What is wrong with a zip archive, in words; None if every byte of a sealed one, and every record of another, is
    as it was written.

    Raises OSError for a file that cannot be opened.
    """
    with open(path, "rb") as file:
        end, size = _end(file, _SEAL_BYTES), file.tell()
        if _SEAL.fullmatch(end):
            found = _digest(file, size - 64)
            return None if end.endswith(found) else "its content does not fit its checksum"
    if end[-_END_BYTES:][:4] != _END_OF_ARCHIVE or end[-2:] != b"\0\0":
        return "its end is missing or changed"
    try:
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
            # A few bytes of a compressed record can hold gigabytes; torch reads what is marked as a folder as nothing.
            if sum(record.file_size for record in records) > size:
                return "its records are compressed or overlap"
            if folders := [record.filename for record in records if record.external_attr & _IS_FOLDER]:
                return f"{folders[0]} is marked as a folder"
            wrong = archive.testzip()
    except Exception as error:  # zipfile raises many kinds over a damaged directory, OSError among them
        return str(error) or type(error).__name__
    return None if wrong is None else f"wrong checksum of {wrong}"


def _end(file: BinaryIO, length: int) -> bytes:
    """The last `length` bytes, or all there are; the file then stands at its end."""
    file.seek(max(0, file.seek(0, os.SEEK_END) - length))
    return file.read()


def _digest(file: BinaryIO, size: int) -> bytes:
    """sha256 of the first `size` bytes, in hexadecimal digits."""
    digest = hashlib.sha256()
    file.seek(0)
    while size > 0 and (piece := file.read(min(size, 1 << 20))):
        digest.update(piece)
        size -= len(piece)
    return digest.hexdigest().encode()
