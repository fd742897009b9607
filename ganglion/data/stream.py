"""Where labelled images come from: streams, which are read in one direction, by many loader processes at once.

timm opens them: it finds the shards, their lengths, and the classes. They are read here, because timm's readers decode
what they read, lose what they cannot decode, and in distributed evaluation repeat and leave out images.

The loader processes of all ranks are numbered as one sequence of `workers`. What a worker reads is a function of the
seed, the epoch, its number and how many there are.
"""

from __future__ import annotations

import hashlib
import inspect
import io
import os
import random
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, NamedTuple

from ..errors import unknown
from .decode import MAX_PIXELS, Raw, UnreadableImage, extensions, read_image, reason
from .files import hidden
from .sampler import draw
from .source import ImageSource, foreign, names_of
from .types import DataError


class Record(NamedTuple):
    """An encoded image, or why there is none."""

    name: str
    label: int
    content: bytes | None
    reason: str = ""


class StreamSource(ImageSource):
    """Images that come in the order of their files.

    An epoch of training is `len(self)` images. Workers whose files hold fewer than their part begin again, and those
    whose files hold more leave some out; other ones each epoch, as the files are shuffled.
    """

    def __init__(self, class_to_idx: Mapping[str, int], *, length: int, channels: int, max_pixels: int):
        self._length = length
        self.channels: int = channels
        self._max_pixels = max_pixels
        self.class_names: list[str] | None = names_of(class_to_idx)
        self._expected: int | None = None

    def __len__(self) -> int:
        return self._length

    @property
    def num_classes(self) -> int:
        """Known only where the classes are named; 0 otherwise."""
        return len(self.class_names or ())

    def check_classes(self, num_classes: int) -> None:
        """Raise DataError if more classes are named; labels are compared when they are read."""
        super().check_classes(num_classes)
        self._expected = num_classes

    def decode(self, record: Record) -> tuple[Raw, int]:
        """Image and label. Raises UnreadableImage; DataError for a label beyond the network's classes."""
        if self._expected is not None and not 0 <= record.label < self._expected:
            raise DataError(
                f"{record.name} has the label {record.label}, and the network {self._expected} classes: expected "
                "another model.num_classes, or other data"
            )
        if record.content is None:
            raise UnreadableImage(record.reason)
        return read_image(io.BytesIO(record.content), self.channels, self._max_pixels), record.label

    def check_workers(self, workers: int, ranks: int) -> None:
        """Raise DataError unless each of `workers` loader processes, of all ranks, gets training images."""

    @abstractmethod
    def training(self, worker: int, workers: int, seed: int, epoch: int) -> Iterator[Record]:
        """Shuffled records without end."""

    @abstractmethod
    def evaluation(self, worker: int, workers: int) -> Iterator[Record]:
        """Records in order; those of all workers are all, each once."""

    @abstractmethod
    def counts(self, workers: int) -> list[int]:
        """How many records `evaluation` gives to each worker."""


class ShardSource(StreamSource):
    """WebDataset shards: tar files with an image and a .cls for each key, and an _info.json that says how many images
    each holds. A worker reads shards of its own.

    Images are known by their extensions; or are .npy arrays of channels that these cannot have. Hidden files
    are left out. What a shard should hold and cannot be read counts as unreadable.
    """

    def __init__(self, reader: Any, *, channels: int, limit: int | None = None, max_pixels: int = MAX_PIXELS):
        info = reader.split_info
        if info.alt_label:
            raise DataError(
                f"{reader.root}: labels are read from .cls, not from alt_label {info.alt_label!r}"
            )
        files = [os.path.join(reader.root, name) for name in info.filenames]
        if not files or len(files) != len(info.shard_lengths):
            raise DataError(
                f"{reader.root}: _info.json names {len(files)} shards and {len(info.shard_lengths)} shard_lengths"
            )
        if "://" not in reader.root and (missing := [file for file in files if not os.path.isfile(file)]):
            raise DataError(f"{reader.root}: _info.json names {missing[0]}, which does not exist")
        left = sum(info.shard_lengths) if limit is None else limit
        self._shards: list[tuple[str, int, int]] = []  # file, images to read, images there should be
        for file, length in zip(files, info.shard_lengths, strict=True):
            self._shards.append((file, min(length, left), length))
            left -= self._shards[-1][1]
        self._shards = [shard for shard in self._shards if shard[1]]
        length = sum(images for _, images, _ in self._shards)
        if limit is None and reader.num_samples != info.num_samples:
            length = reader.num_samples  # of an epoch, as the caller wants it
        super().__init__(reader.class_to_idx, length=length, channels=channels, max_pixels=max_pixels)
        self._held = reader.sample_initial_size, reader.sample_shuffle_size
        self._extensions = [extension[1:] for extension in extensions(channels)]

    def check_workers(self, workers: int, ranks: int) -> None:
        if workers > len(self._shards):
            fits = len(self._shards) // ranks
            raise DataError(
                f"{len(self._shards)} shards for {ranks} devices with {workers // ranks} loader processes each: "
                "every process needs a shard of its own. Expected "
                + (f"at most {fits} data.workers" if fits else f"at least {ranks} shards")
            )

    def training(self, worker: int, workers: int, seed: int, epoch: int) -> Iterator[Record]:
        shards = list(self._shards)
        random.Random(draw(seed, epoch)).shuffle(shards)
        shards, rng = shards[worker::workers], random.Random(draw(seed, epoch, worker))
        while True:
            # All of a turn comes before any of the next, so that nothing comes twice before everything came once.
            records = (record for shard in shards for record in self._read(*shard))
            yield from _shuffled(records, *self._held, rng)
            rng.shuffle(shards)

    def evaluation(self, worker: int, workers: int) -> Iterator[Record]:
        return (record for shard in self._shards[worker::workers] for record in self._read(*shard))

    def counts(self, workers: int) -> list[int]:
        return [sum(images for _, images, _ in self._shards[worker::workers]) for worker in range(workers)]

    def _read(self, file: str, images: int, length: int) -> Iterator[Record]:
        """The first N images of a shard, whatever is left of it."""
        from webdataset.tariterators import tarfile_samples

        errors: list[Exception] = []

        def note(error: Exception) -> bool:
            errors.append(error)
            return True

        found, shard = 0, os.path.basename(file)
        samples = tarfile_samples([{"url": file}], handler=note, select_files=lambda path: not hidden(path))
        for sample in samples:
            if found == length:
                raise DataError(f"{file} holds more than the {length} images that _info.json says")
            found += 1
            if found <= images:
                yield self._record(f"{shard}/{sample['__key__']}", sample)
            if found == images < length:
                return
        why = reason(errors[-1]) if errors else f"{found} images in the shard, {length} by _info.json"
        for missing in range(found, images):
            yield Record(f"{shard}[{missing}]", 0, None, why)

    def _record(self, name: str, sample: dict[str, Any]) -> Record:
        content = next((sample[name] for name in self._extensions if name in sample), None)
        if content is None:
            return Record(name, 0, None, f"no image among {', '.join(k for k in sample if k[:2] != '__')}")
        try:
            return Record(name, int(sample["cls"]), content)
        except (KeyError, ValueError):
            return Record(name, 0, None, f"its .cls is {sample.get('cls')}: expected a whole number")


class HubSource(StreamSource):
    """A Hugging Face dataset as a stream (`hfids/`).

    By index (`hfds/`) a set must be on the disk first, as Arrow files beside its download: twice the 150 GB of
    ImageNet-1k. A stream begins at once and keeps nothing.

    Where the number of workers divides the number of files, a worker reads files of its own in training, else it reads
    all and takes its part. In evaluation it always does, since the number of images in a file is unknown.
    """

    def __init__(self, reader: Any, *, channels: int, limit: int | None = None, max_pixels: int = MAX_PIXELS):
        if limit is not None and reader.is_training:
            raise DataError("a Hugging Face stream has no first images in training: use data.num_samples")
        self._reader = reader
        length = reader.num_samples if limit is None else min(limit, reader.num_samples)
        names = self._names()
        class_to_idx = (
            reader.class_to_idx if reader.remap_class else {name: i for i, name in enumerate(names)}
        )
        super().__init__(class_to_idx, length=length, channels=channels, max_pixels=max_pixels)
        self._labels: list[int] | None = None
        if reader.remap_class and names:
            if unlisted := [name for name in names if name not in class_to_idx]:
                raise DataError(foreign(reader.name, unlisted))
            self._labels = [class_to_idx[name] for name in names]

    def _names(self) -> list[str]:
        """Of the classes, as far as the data say them. Raises DataError if there are no such columns."""
        # Before the images' column is cast, which would make one.
        features = self._reader.builder.as_streaming_dataset(split=self._reader.split).features or {}
        for key in (self._reader.input_key, self._reader.target_key):
            if features and key not in features:
                raise DataError(f"{self._reader.name}: " + unknown("column", key, features))
        return getattr(features.get(self._reader.target_key), "names", None) or []

    def training(self, worker: int, workers: int, seed: int, epoch: int) -> Iterator[Record]:
        from datasets.distributed import split_dataset_by_node

        stream = self._open()
        options: dict[str, Any] = {}
        if "max_buffer_input_shards" in inspect.signature(stream.shuffle).parameters:
            # Interleaved files count as one, and each worker needs one.
            options["max_buffer_input_shards"] = max(1, min(10, stream.num_shards // workers))
        # The same seed for all workers and turns: they share the files out by the order of the shuffled ones.
        stream = stream.shuffle(seed=draw(seed, epoch), buffer_size=self._reader.shuffle_size, **options)
        part = split_dataset_by_node(stream, worker, workers)
        while True:
            nothing = True
            for record in self._records(part):
                nothing = False
                yield record
            if nothing:
                raise DataError(
                    f"{self._reader.name}: there are fewer than {workers} images, one for a process"
                )

    def evaluation(self, worker: int, workers: int) -> Iterator[Record]:
        return islice(self._records(self._open()), worker, len(self), workers)

    def counts(self, workers: int) -> list[int]:
        return [len(range(worker, len(self), workers)) for worker in range(workers)]

    def _open(self) -> Any:
        import datasets

        stream = self._reader.builder.as_streaming_dataset(split=self._reader.split)
        return stream.cast_column(self._reader.input_key, datasets.Image(decode=False))

    def _records(self, stream: Any) -> Iterator[Record]:
        import fsspec.asyn

        fsspec.asyn.reset_lock()  # a forked loader process would wait for a lock of its parent
        # Not `iter(stream)`, which divides the files among loader processes by itself.
        for rows in stream.iter(batch_size=1):
            image, label = rows[self._reader.input_key][0], rows[self._reader.target_key][0]
            yield self._record(image or {}, self._labels[label] if self._labels else int(label))

    def _record(self, image: dict[str, Any], label: int) -> Record:
        from datasets.utils.file_utils import xopen

        content, path = image.get("bytes"), image.get("path")
        name = path or f"unnamed, sha256 {hashlib.sha256(content or b'').hexdigest()[:16]}"
        if content is None and path:
            try:
                with xopen(path, "rb") as file:
                    content = file.read()
            except OSError as error:
                return Record(name, label, None, reason(error))
        return Record(name, label, content, "" if content is not None else "no image")


def _shuffled(records: Iterator[Record], least: int, most: int, rng: random.Random) -> Iterator[Record]:
    """Records in random order: each is drawn from those held, `least` of them in the beginning and `most` later on."""
    held: list[Record] = []
    for record in records:
        held += [record, *islice(records, 1 if len(held) + 1 < most else 0)]
        if len(held) >= min(least, most):
            i = rng.randrange(len(held))
            held[i], held[-1] = held[-1], held[i]
            yield held.pop()
    rng.shuffle(held)
    yield from held
