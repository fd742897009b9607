"""Which files are images: below a folder, and in a tar file. Both leave out and count the same."""

from __future__ import annotations

import io
import os
import posixpath
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain, takewhile
from typing import Any, NamedTuple, Protocol

from timm.utils.misc import natural_key

from ..errors import shown
from .decode import UnreadableImage, extensions, open_regular, reason
from .types import DataError

#: Names for the same split.
SYNONYMS = (("train", "training"), ("validation", "val", "valid", "eval", "evaluation"), ("test", "testing"))

#: Folders that systems put beside a user's files. Names that begin with a dot are hidden anyway.
_SYSTEM = frozenset(("__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found"))


class Files(Protocol):
    """Files that hold images.

    names: paths below `path`, "/" between their parts, in natural order. left_out: how many files were no images, by
    extension.
    """

    path: str
    names: list[str]
    left_out: Counter[str]

    def open(self, index: int) -> Any:
        """What `read_image` takes. Raises OSError and UnreadableImage."""
        ...


def hidden(path: str) -> bool:
    """Whether a file or a folder above it, as far as the path says, is hidden or a system's own."""
    return any(
        part in _SYSTEM or (part.startswith(".") and part not in (".", "..")) for part in path.split("/")
    )


def without(left_out: Counter[str]) -> str:
    """How many files were left out, of which extensions; "" if none."""
    if not left_out:
        return ""
    kinds = [f"{extension or 'without one'} {count}" for extension, count in left_out.most_common(5)]
    more = [f"{len(left_out) - 5} more"] if len(left_out) > 5 else []
    return f"{left_out.total()} files left out by their extension: {shown(', '.join([*kinds, *more]))}"


class FolderFiles:
    """The images below a folder, hidden ones excepted. Links are followed, but not in circles.

    Raises OSError for a folder that cannot be read.
    """

    def __init__(self, folder: str | os.PathLike[str], channels: int):
        self.path: str = os.fspath(folder)
        self.names: list[str]
        self.left_out: Counter[str]
        self.names, self.left_out = _images(_below(self.path), channels)

    def open(self, index: int) -> str:
        return os.path.join(self.path, *self.names[index].split("/"))


class _Member(NamedTuple):
    """Where a file's content is in a tar file; None: it has none of its own."""

    offset: int | None
    size: int


class TarFiles:
    """The images in a tar file, hidden ones excepted, and in tar files inside of it, which count as folders.

    A single folder around everything that is named as the tar file or as a split is left out of the paths.

    Raises DataError for a damaged tar file, OSError for one that cannot be read.
    """

    def __init__(self, path: str | os.PathLike[str], channels: int):
        self.path: str = os.fspath(path)
        try:
            with open_regular(self.path) as file:
                members = dict(_members(file, 0, os.fstat(file.fileno()).st_size))
        except OSError:
            raise
        except (
            Exception
        ) as error:  # over damaged headers tarfile raises ValueError, IndexError and others, too
            raise DataError(f"cannot read {self.path}: {reason(error)}") from error
        around = {name.partition("/")[0] for name in members if "/" in name}
        splits = {os.path.basename(self.path).removesuffix(".tar"), *chain(*SYNONYMS)}
        if len(around) == 1 and around <= splits and all(name.count("/") >= 2 for name in members):
            members = {name.partition("/")[2]: member for name, member in members.items()}
        self.names: list[str]
        self.left_out: Counter[str]
        self.names, self.left_out = _images(members, channels)
        self._members = [members[name] for name in self.names]

    def open(self, index: int) -> io.BytesIO:
        # Opened anew: the position of an open file would be shared by forked loader workers.
        offset, size = self._members[index]
        if offset is None:
            raise UnreadableImage("it has no content of its own in the tar file")
        with open_regular(self.path) as file:
            file.seek(offset)
            return io.BytesIO(file.read(size))


def _images(names: Iterable[str], channels: int) -> tuple[list[str], Counter[str]]:
    wanted, found, left_out = frozenset(extensions(channels)), [], Counter[str]()
    for name in names:
        extension = posixpath.splitext(name)[1].lower()
        if extension in wanted:
            found.append(name)
        else:
            left_out[extension] += 1
    return sorted(found, key=lambda name: (natural_key(name), name)), left_out


def _below(folder: str) -> Iterator[str]:
    """Paths of the files below a folder, "/" between their parts."""
    waiting = [("", folder, frozenset[tuple[int, int]]())]
    while waiting:
        prefix, path, above = waiting.pop()
        state = os.stat(path)
        if (here := (state.st_dev, state.st_ino)) in above:
            continue
        with os.scandir(path) as entries:
            for entry in entries:
                if hidden(entry.name):
                    continue
                if _is_folder(entry):
                    waiting.append((f"{prefix}{entry.name}/", entry.path, above | {here}))
                else:
                    yield prefix + entry.name


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _members(file: Any, start: int, end: int) -> Iterator[tuple[str, _Member]]:
    """Path and position of each file in the tar file between two positions of `file`."""
    file.seek(start)
    tar = tarfile.TarFile(fileobj=file, mode="r")
    members = list(takewhile(lambda member: member.offset < end, tar))
    # The reader takes a damaged header for the end.
    file.seek(tar.offset)
    if tar.offset < end and file.read(min(tarfile.BLOCKSIZE, end - tar.offset)).strip(b"\0"):
        raise tarfile.ReadError(f"damaged at byte {tar.offset}")
    by_name = {posixpath.normpath(member.name): member for member in members}
    for member in members:
        path = posixpath.normpath(member.name)
        name = path.lstrip("/")
        if hidden(name) or not (member.isreg() or member.islnk() or member.issym()):
            continue
        if not member.isreg():
            around = posixpath.dirname(path) if member.issym() else ""
            member = by_name.get(posixpath.normpath(posixpath.join(around, member.linkname)))
        if member is None or not member.isreg() or member.issparse():
            yield name, _Member(None, 0)
        elif name.lower().endswith(".tar"):
            for inner, found in list(_members(file, member.offset_data, member.offset_data + member.size)):
                yield f"{name[:-4]}/{inner}", found
        else:
            yield name, _Member(member.offset_data, member.size)
