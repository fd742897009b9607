"""What an earlier version wrote still loads and resumes: a run that was killed in its second epoch, and an export.

`before_tasks.tar.xz` was written by the version whose files did not say of which task they are: `run/` (two epochs of
five steps, SGD and averaged weights), `whole/model/` (exported), and `expected.json`, what their networks computed.
"""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest
import torch

import ganglion
from ganglion.tasks import fit

from .runs import read_last, write_data

ARCHIVE = Path(__file__).with_name("before_tasks.tar.xz")
CHECKPOINT = "run/checkpoints/step-00000005.ckpt"


@pytest.fixture
def there(tmp_path, monkeypatch):
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path)  # written by us
    write_data(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_loads(there):
    expected = json.loads(Path("expected.json").read_text())
    image = torch.linspace(-1, 1, 3 * 32 * 32).reshape(1, 3, 32, 32)
    for source, name in (("whole/model", "model"), (CHECKPOINT, "checkpoint")):
        loaded = ganglion.load_model(source)
        assert loaded.task.name == "classification" and loaded.num_classes == 4
        assert loaded.data_config["input_size"] == (3, 32, 32)
        with torch.inference_mode():
            logits = loaded.network(image)[0]
        torch.testing.assert_close(logits, torch.tensor(expected[name]), atol=1e-6, rtol=1e-5)


def test_resumes(there, capsys):
    assert fit.main(["--resume", "run"]) == 0, capsys.readouterr().err
    assert f"resuming from {CHECKPOINT}" in capsys.readouterr().out
    last = read_last(there / "run")
    assert last["global_step"] == 10 and last["ganglion"]["task"] == "classification"
    # Its second epoch there had a loss of 1.3871.
    assert last["epoch_losses"]["sum"] / last["epoch_losses"]["count"] == pytest.approx(1.3871, abs=2e-4)
    assert json.loads(Path("run/model/config.json").read_text())["task"] == "classification"


def test_a_setting_that_it_did_not_know_has_its_default_there(there, capsys):
    assert fit.main(["--resume", "run", "--model.class_weights", "[1,1,1,2]"]) == 1
    assert "holds a run with other settings: --model.class_weights (None there" in capsys.readouterr().err
