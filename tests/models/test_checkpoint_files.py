"""Checkpoint files that are not what they should be, and those that come over the network."""

from __future__ import annotations

import argparse
import hashlib
import http.server
import io
import os
import pickle
import socket
import sys
import threading
import time
import types
import zipfile
from collections import Counter
from email.message import Message
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

import ganglion
from ganglion.models import CheckpointError, load_checkpoint, read_weights, weight_files
from tests.models.refusals import assert_refused


class Bomb:
    """Unpickling this in full leaves a file behind."""

    def __init__(self, witness: Path):
        self.witness = witness

    def __reduce__(self):
        return Path.touch, (self.witness,)


def test_pickle_bombs_do_not_run(model, published, tmp_path):
    witness = tmp_path / "boom"
    pickle.loads(pickle.dumps(Bomb(witness)))
    assert witness.exists(), "the bomb of this test does not work"
    witness.unlink()
    torch.save({"model": published, "args": Bomb(witness)}, tmp_path / "a.pth")
    torch.save(Bomb(witness), tmp_path / "b.pth", _use_new_zipfile_serialization=False)
    (tmp_path / "c.pth").write_bytes(pickle.dumps(Bomb(witness), protocol=2))
    for name in ("a.pth", "b.pth", "c.pth"):
        assert_refused(model, tmp_path / name, name, "could run code")
    assert not witness.exists()


def test_training_files_with_harmless_objects(model, published, tmp_path, monkeypatch):
    """Options, numpy scalars and mmengine's histories lie beside the weights; they are passed over."""
    module = types.ModuleType("mmengine.logging.history_buffer")

    class HistoryBuffer:
        def __init__(self):
            self.log = np.arange(3.0)

    HistoryBuffer.__module__, HistoryBuffer.__qualname__ = module.__name__, "HistoryBuffer"
    module.HistoryBuffer = HistoryBuffer
    for name in ("mmengine", "mmengine.logging", "mmengine.logging.history_buffer"):
        monkeypatch.setitem(sys.modules, name, module if name == module.__name__ else types.ModuleType(name))
    extras = {
        "args": argparse.Namespace(lr=1.0),
        "best": np.float64(82.6),
        "message_hub": {"log_scalars": {"loss": HistoryBuffer()}},
    }
    torch.save(
        {"state_dict": {f"backbone.{name}": value for name, value in published.items()}, **extras},
        tmp_path / "epoch_12.pth",
    )
    monkeypatch.undo()
    load_checkpoint(model, tmp_path / "epoch_12.pth")
    assert torch.equal(model.head.fc.bias, published["classifier.head.bias"])


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.9999])
@pytest.mark.parametrize("suffix", [".pth", ".old.pth", ".safetensors"])
def test_truncated_files(model, published, tmp_path, suffix, share):
    whole, file = tmp_path / "whole", tmp_path / f"cut{suffix}"
    if suffix == ".safetensors":
        safetensors.torch.save_file(published, whole)
    else:
        torch.save({"model": published}, whole, _use_new_zipfile_serialization=suffix == ".pth")
    data = whole.read_bytes()
    file.write_bytes(data[: int(share * len(data))])
    assert_refused(model, file, file.name, "Expected a .safetensors file or one written by torch.save.")


@pytest.mark.parametrize(
    "content", [b"<!DOCTYPE html><title>404</title>", b"version https://git-lfs", b"PK\x03\x04zip"]
)
def test_other_files(model, tmp_path, content):
    (tmp_path / "weights.pth").write_bytes(content)
    assert_refused(model, tmp_path / "weights.pth", "weights.pth", "Expected")


def test_wrong_places(model, tmp_path):
    assert_refused(model, tmp_path / "none.pth", "no checkpoint", "none.pth", error=FileNotFoundError)
    assert_refused(model, tmp_path, "is a folder", "local-dir:")
    assert_refused(model, "http://example.org/a.pth", "https", "'http'")
    torch.save(Counter(a=1), tmp_path / "c.pth")
    assert_refused(model, tmp_path / "c.pth", "no tensors")
    torch.save({0: {"exp_avg": torch.zeros(1)}}, tmp_path / "o.pth")
    assert_refused(model, tmp_path / "o.pth", "no tensor of VMamba", "exp_avg")
    torch.save([torch.zeros(1)], tmp_path / "l.pth")
    assert_refused(model, tmp_path / "l.pth", "holds one list")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_only_regular_files_are_read(model, tmp_path, monkeypatch):
    """What never ends is refused at once; a link to a file is a file."""
    monkeypatch.chdir(tmp_path)  # a socket's path has to be short
    os.mkfifo("pipe.pth")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.pth")
        assert_refused(model, "pipe.pth", "pipe.pth", "is a named pipe", "expected a regular file")
        assert_refused(model, "socket.pth", "is a socket", "expected a regular file")
        assert_refused(model, os.devnull, "is a device", "expected a regular file")
        assert_refused(model, "pipe.pth", "is a named pipe", sha256="0" * 64)
    torch.save(model.state_dict(), "weights.pth")
    Path("link.pth").symlink_to("weights.pth")
    assert load_checkpoint(model, "link.pth").complete
    assert_refused(model, "a\0b.pth", "no checkpoint", error=FileNotFoundError)
    assert_refused(model, "weights.pth/a.pth", "no checkpoint", error=FileNotFoundError)


def flips(data: bytes, start: int, stop: int, count: int):
    """`data` with one flipped bit each, spread over [start, stop)."""
    for i in range(count):
        position = start + (stop - start) * i // count
        yield position, data[:position] + bytes([data[position] ^ 1 << i % 8]) + data[position + 1 :]


@pytest.mark.parametrize("where", ["directory", "records"])
def test_a_flipped_bit_is_damage_or_harmless(published, tmp_path, where):
    """An archive has checksums, so what is read from it is what was written."""
    file = tmp_path / "weights.pth"
    torch.save({"model": published}, file)
    data = file.read_bytes()
    with zipfile.ZipFile(file) as archive:
        directory = archive.start_dir
    start, stop = (directory, len(data)) if where == "directory" else (0, directory)
    refused = 0
    for position, damaged in flips(data, start, stop, 150):
        file.write_bytes(damaged)
        try:
            read = read_weights(file)["model"]
        except CheckpointError as error:
            assert "Expected a .safetensors file or one written by torch.save." in str(error), position
            refused += 1
        else:
            assert read.keys() == published.keys(), position
            assert all(torch.equal(read[name], published[name]) for name in published), position
    assert refused > 50


@pytest.mark.parametrize("suffix", [".old.pth", ".safetensors"])
def test_damage_of_files_without_checksums_is_no_traceback(published, tmp_path, suffix):
    file = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        safetensors.torch.save_file(published, file)
    else:
        torch.save({"model": published}, file, _use_new_zipfile_serialization=False)
    data = file.read_bytes()
    refused = 0
    for _, damaged in flips(data, 0, 8000, 120):  # the names are in front
        file.write_bytes(damaged)
        try:
            read_weights(file)
        except CheckpointError:
            refused += 1
    assert refused > 12


def test_sha256_is_compared_to_its_last_digit(model, published, tmp_path):
    file = tmp_path / "weights.pth"
    torch.save(published, file)
    digits = hashlib.sha256(file.read_bytes()).hexdigest()
    for length in (8, 9, 16, 64):
        load_checkpoint(model, file, sha256=digits[:length].upper())
        other = digits[: length - 1] + ("0" if digits[length - 1] != "0" else "1")
        assert_refused(model, file, digits, sha256=other)
    for wrong in (digits[:7], digits + "0", "sha256:" + digits[:20], ""):
        assert_refused(model, file, "8 to 64 hexadecimal digits", error=ValueError, sha256=wrong)


@pytest.fixture
def release(published, tmp_path, monkeypatch):
    """A release file behind https: the transport is replaced, torch.hub's checks of it are not."""
    torch.save({"model": published}, tmp_path / "release")
    data = (tmp_path / "release").read_bytes()
    requests = []

    def urlopen(request, **kwargs):
        requests.append(request.full_url)
        response = io.BytesIO(data)
        response.info = Message
        return response

    monkeypatch.setattr(torch.hub, "urlopen", urlopen)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    return types.SimpleNamespace(requests=requests, sha256=hashlib.sha256(data).hexdigest())


def test_offline_nothing_is_asked_for(model, published, release, tmp_path, monkeypatch):
    url = "https://example.org/a/model.pth"
    monkeypatch.setenv("GANGLION_OFFLINE", "1")
    assert_refused(model, url, "GANGLION_OFFLINE", "Put the file there by hand")
    assert release.requests == []
    monkeypatch.delenv("GANGLION_OFFLINE")
    load_checkpoint(model, url)
    monkeypatch.setenv("GANGLION_OFFLINE", "1")
    load_checkpoint(model, url)  # from where it is kept
    with pytest.raises(
        CheckpointError, match=r"GANGLION_OFFLINE is set: the weights of vmamba_tiny_s1l8.*by hand"
    ):
        ganglion.load_model("vmamba_tiny_s1l8")


def served(handler):
    """A server on this machine, and the address of a file of it."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server, f"http://127.0.0.1:{server.server_port}/model.pth"


@pytest.mark.parametrize("fault", ["truncated", "corrupted", "stalled", "absent"])
def test_a_server_that_fails(published, tmp_path, monkeypatch, fault):
    """Nothing is kept that is not whole; a second try, of a server that has come to itself, succeeds."""
    torch.save({"model": published}, tmp_path / "release")
    whole, faults = (tmp_path / "release").read_bytes(), [fault]

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            now = faults.pop() if faults else ""
            if now == "absent":
                self.send_error(404)
                return
            data = bytearray(whole)
            if now == "corrupted":
                data[len(data) // 2] ^= 255
            self.send_response(200)
            self.send_header("Connection", "close")
            if now != "truncated":
                self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[: len(data) // 3] if now in ("truncated", "stalled") else data)
            if now == "stalled":
                time.sleep(1.5)

        def log_message(self, *_):
            pass

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(weight_files, "STALLED", 0.3)
    server, url = served(Handler)
    try:
        with pytest.raises(CheckpointError, match=r"Put the file there by hand: .*model\.pth"):
            weight_files._download(url, None)
        assert not [p for p in (tmp_path / "hub").rglob("*") if p.is_file()]
        assert weight_files._download(url, None).read_bytes() == whole
    finally:
        server.shutdown()


def test_download_is_checked_and_kept(model, published, release, tmp_path):
    url = "https://example.org/a/model.pth"
    load_checkpoint(model, url, sha256=release.sha256)
    assert torch.equal(model.head.fc.bias, published["classifier.head.bias"])
    load_checkpoint(model, url, sha256=release.sha256[:12])
    assert release.requests == [url]
    load_checkpoint(model, "https://example.org/b/model.pth")
    assert len(release.requests) == 2, "two files of one name were taken for each other"
    assert_refused(model, url, "sha256", release.sha256, sha256="0" * 64)
    assert_refused(model, "https://example.org/c-01234567.pth", "c-01234567.pth", "hash")
    assert not list((tmp_path / "hub").rglob("c-*")), "a file that failed its check was kept"
