"""examples/deploy: exported networks in processes without this library, and in a browser, on the same photo."""

from __future__ import annotations

import functools
import http.server
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config

import ganglion
from tests.explorer.browser import chromium

pytest.importorskip("onnxscript", reason="NOT TESTED: onnxscript is not installed (ganglion[export])")
pytest.importorskip("onnxruntime", reason="NOT TESTED: onnxruntime is not installed (ganglion[export])")

EXAMPLES = Path(__file__).parents[2] / "examples" / "deploy"
NAMES = ["rose", "tulip", "daisy", "dandelion", "poppy"]

# The script of argv[1], where this library cannot be imported.
ALONE = (
    "import runpy, sys; sys.modules['ganglion'] = None; sys.argv = sys.argv[1:]; "
    "sys.path.insert(0, sys.argv[0].rpartition('/')[0]); runpy.run_path(sys.argv[0])"
)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    network = timm.create_model("test_vmamba", num_classes=5, depths=(1, 1), dims=(8, 12)).eval()
    network.get_classifier().weight.data *= 100  # logits that differ
    return network


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    """Smooth, neither square nor of a multiple of anything."""
    path = tmp_path_factory.mktemp("photo") / "photo.png"
    rows, cols = np.mgrid[:91, :133]
    waves = np.stack([np.sin(rows / (9 + k)) * np.cos(cols / (15 - k)) for k in range(3)], -1)
    Image.fromarray(np.uint8(127 + 120 * waves)).save(path)
    return path


def best(network, photo):
    """What the examples must print: the three best classes, by timm's own transform and the network itself."""
    config = resolve_model_data_config(network, pretrained_cfg={"input_size": (3, 64, 64)})
    image = create_transform(**config)(Image.open(photo))
    with torch.no_grad():
        values, indices = network(image[None])[0].topk(3)
    return [(NAMES[i], float(v)) for v, i in zip(values, indices, strict=True)]


@pytest.mark.parametrize(
    ("example", "suffix", "runtime"),
    [("onnxruntime_image.py", ".onnx", "onnxruntime"), ("openvino_image.py", ".xml", "openvino")],
)
def test_without_this_library(example, suffix, runtime, network, photo, tmp_path):
    pytest.importorskip(runtime, reason=f"NOT TESTED: {runtime} is not installed")
    file = tmp_path / f"net{suffix}"
    ganglion.export_model(network, file, size=64, metadata={"class_names": NAMES})
    argv = [sys.executable, "-c", ALONE, str(EXAMPLES / example), str(file), str(photo)]
    done = subprocess.run(
        argv, capture_output=True, text=True, cwd=tmp_path, env=os.environ | {"PYTHONPATH": ""}
    )
    assert done.returncode == 0, done.stderr
    path, *found = done.stdout.strip().split("  ")
    assert path == str(photo)
    for text, (name, value) in zip(found, best(network, photo), strict=True):
        assert text.split()[0] == name and abs(float(text.split()[1]) - value) < 2e-3 + 1e-3 * abs(value)


@pytest.fixture
def runtime_of_the_web():
    """The folder of onnxruntime-web, from GANGLION_ONNXRUNTIME_WEB or as `.ci/run` installs it."""
    default = EXAMPLES.parents[1] / "build" / "web" / "node_modules" / "onnxruntime-web" / "dist"
    found = Path(os.environ.get("GANGLION_ONNXRUNTIME_WEB", default))
    if not (found / "ort.wasm.min.js").exists():
        pytest.skip("NOT TESTED: npm install --prefix build/web onnxruntime-web")
    return found


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


def test_in_a_browser(network, photo, runtime_of_the_web, tmp_path):
    # Of the side that is scaled to: a canvas scales in its own way.
    Image.open(photo).crop((0, 0, 73, 73)).save(tmp_path / "photo.png")
    shutil.copy(EXAMPLES / "web.html", tmp_path)
    (tmp_path / "dist").symlink_to(runtime_of_the_web)
    ganglion.export_model(network, tmp_path / "net.onnx", size=64, metadata={"class_names": NAMES})
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(_Quiet, directory=str(tmp_path))
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with chromium() as browser:
            page = browser.new_page()
            errors = []
            page.on("pageerror", lambda error: errors.append(str(error)))
            page.goto(f"http://127.0.0.1:{server.server_port}/web.html?model=net.onnx")
            page.get_by_text("Choose a picture.").wait_for(timeout=60_000)
            page.set_input_files("input", tmp_path / "photo.png")
            page.get_by_text("Done.").wait_for(timeout=60_000)
            found = page.locator("li").all_inner_texts()
    finally:
        server.shutdown()
    assert not errors and len(found) == 3
    for text, (name, value) in zip(found, best(network, tmp_path / "photo.png"), strict=True):
        assert text.split()[0] == name and abs(float(text.split()[1]) - value) < 2e-3 + 1e-3 * abs(value)
