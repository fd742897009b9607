"""Files written whole or not at all, sealed, and never over somebody else's."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import zipfile

import pytest
import torch

from ganglion.files import find_damage, refuse_existing, remove_temporaries, replacing, seal


def test_replacing_is_whole_or_nothing(tmp_path):
    target = tmp_path / "plot.png"
    target.write_text("old")
    with pytest.raises(KeyError), replacing(target) as temporary:
        temporary.write_text("half")
        raise KeyError
    assert target.read_text() == "old" and os.listdir(tmp_path) == ["plot.png"]
    with replacing(target) as temporary:
        assert temporary.suffix == ".png" and temporary.parent == tmp_path
        temporary.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new" and os.listdir(tmp_path) == ["plot.png"]


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX's")
@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_replacing_gives_the_mode_of_the_umask(umask, tmp_path):
    before = os.umask(umask)
    try:
        with replacing(tmp_path / "file") as temporary:
            temporary.unlink()  # as writers do that make a private file of their own
            os.close(os.open(temporary, os.O_CREAT | os.O_WRONLY, 0o600))
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o666 & ~umask


def test_durable_is_flushed_before_and_after_the_rename(tmp_path, monkeypatch):
    calls = []
    sync, replace = os.fsync, os.replace

    def fsync(descriptor):
        kind = "folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file"
        calls.append(f"fsync {kind}")
        sync(descriptor)

    def rename(a, b):
        calls.append("replace")
        replace(a, b)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", rename)
    with replacing(tmp_path / "file", durable=True) as temporary:
        temporary.write_text("content")
    assert calls == ["fsync file", "replace", "fsync folder"]


def test_what_a_killed_writer_left_is_removed(tmp_path):
    code = (
        "import os, sys; from ganglion.files import replacing\n"
        "with replacing(sys.argv[1]) as temporary: temporary.write_text('half'); os._exit(9)"
    )
    for name in ("step-00000001.ckpt", "log.csv", "model"):
        subprocess.run([sys.executable, "-c", code, str(tmp_path / name)], check=False)
    (tmp_path / ".notes.tmp").write_text("of the user")
    (tmp_path / "log.csv").write_text("")
    assert len(os.listdir(tmp_path)) == 5
    remove_temporaries(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [".notes.tmp", "log.csv"]


def test_existing_files_are_refused(tmp_path):
    refuse_existing(tmp_path / "new.csv", "--output")
    (tmp_path / "mine.csv").write_text("")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for name in ("mine.csv", "dangling", "."):
        with pytest.raises(FileExistsError, match=r"--output .*: it is there already.* --overwrite"):
            refuse_existing(tmp_path / name, "--output")
    refuse_existing(tmp_path / "mine.csv", "--output", overwrite=True)


def test_every_flipped_bit_of_a_sealed_file_is_found(tmp_path):
    path = tmp_path / "file.ckpt"
    torch.save({"a": torch.arange(5), "b": [1, "two"]}, path)
    assert find_damage(path) is None  # not sealed
    seal(path)
    assert find_damage(path) is None
    assert torch.equal(torch.load(path, weights_only=True)["a"], torch.arange(5))
    whole = path.read_bytes()
    for place in range(len(whole)):
        changed = bytearray(whole)
        changed[place] ^= 1 << place % 8
        path.write_bytes(changed)
        assert find_damage(path) is not None, place
    for length in (0, 1, 21, 100, len(whole) - 100, len(whole) - 80, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert find_damage(path) is not None, length
    with pytest.raises(ValueError, match="without a comment"):
        path.write_bytes(whole)
        seal(path)


def test_records_of_an_unsealed_file_are_checked(tmp_path):
    path = tmp_path / "file.ckpt"
    torch.save({"a": torch.arange(1000)}, path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert "wrong checksum of" in (find_damage(path) or "")


def test_records_of_an_unsealed_file_that_torch_would_misread_are_found(tmp_path):
    """Whatever one bit of the directory does: torch then reads what was written, or the damage is found."""
    path = tmp_path / "file.ckpt"
    value = torch.arange(1000)
    torch.save(value, path)
    content = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        start = archive.start_dir
    found = 0
    for place in range(start, len(content)):
        for bit in (
            range(8) if place < start + 46 else (place % 8,)
        ):  # an entry in full, then one bit of each byte
            path.write_bytes(content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :])
            if find_damage(path) is not None:
                found += 1
            else:
                try:
                    read = torch.load(path, weights_only=True)
                except Exception:  # said to be damage where weights are read
                    continue
                assert torch.equal(read, value), (place, bit)
    assert found > 200


def test_compressed_archives_are_refused(tmp_path):
    """torch writes none, and a few bytes of one can hold gigabytes."""
    with zipfile.ZipFile(tmp_path / "file.ckpt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data/0", bytes(100_000))
    assert "compressed" in (find_damage(tmp_path / "file.ckpt") or "")
