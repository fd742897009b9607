"""The page in a browser: its numbers against Python's, by pointer and by keyboard, at both widths."""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn

import ganglion
from ganglion.analysis import contribution_squares, effective_receptive_field, scan_map
from ganglion.analysis.scans import layer_inputs, scan_layers
from ganglion.data import eval_transform
from ganglion.explorer import make_page, packing, record
from ganglion.tasks.loaded_model import LoadedModel
from tests.cli.networks import SIZE, export, picture
from tests.explorer.browser import Opened, chromium

MODES = ("CB", "CwBw", "CwBdtw", "ww")
#: Of the largest entry.
BOUND = 1e-5
#: Names as an attacker would choose them.
CLASSES = ["ant </script><script>throw 1</script>", "bee <img src=x onerror=throw(1)>", "crab & 'co' \"x\""]


#: How many colours a canvas shows.
COLOURS = """canvas => {
  const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext("2d");
  copy.drawImage(canvas, 0, 0);
  const { data } = copy.getImageData(0, 0, canvas.width, canvas.height);
  return new Set(new Uint32Array(data.buffer)).size;
}"""

#: How colourful the top and the bottom of a route's picture are; the photo under it is grey.
GLOW = """k => {
  const canvas = document.querySelectorAll("#walks canvas")[k], { width, height } = canvas;
  const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  context.drawImage(canvas, 0, 0);
  return [4, height - 5].map((y) => {
    const { data } = context.getImageData(0, y, width, 1);
    return data.reduce((sum, value, i) => sum + (i % 4 === 0 ? Math.abs(value - data[i + 2]) : 0), 0);
  });
}"""

#: The values of a grey picture.
GREY = """async ({ bytes, type }) => {
  const raw = Uint8Array.from(atob(bytes), (letter) => letter.charCodeAt(0));
  const bitmap = await createImageBitmap(new Blob([raw], { type }));
  const context = new OffscreenCanvas(bitmap.width, bitmap.height).getContext("2d");
  context.drawImage(bitmap, 0, 0);
  return [...context.getImageData(0, 0, bitmap.width, bitmap.height).data.filter((_, i) => i % 4 === 0)];
}"""


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


@dataclass(frozen=True, kw_only=True)
class Made:
    """A page and what it is of."""

    page: Path
    model: LoadedModel
    images: list[Path]
    size: tuple[int, int]

    def input(self, image: int = 0) -> torch.Tensor:
        config = self.model.data_config | {"input_size": (3, *self.size)}
        return eval_transform(config)(Image.open(self.images[image]))[None]


def strong(network: nn.Module) -> nn.Module:
    """Weights under which no layer's features vanish, and step sizes and decays differ from pixel to pixel."""
    for name, p in network.named_parameters():
        if p.ndim > 1 and name.endswith(".weight"):
            torch.nn.init.normal_(p, std=p[0].numel() ** -0.5)
    for layer in scan_layers(network).values():
        with torch.no_grad():
            layer.dt_projs_weight.mul_(4)
            layer.dt_projs_bias.add_(torch.randn_like(layer.dt_projs_bias) + 2)
            layer.A_logs.add_(torch.randn_like(layer.A_logs))
            layer.x_proj_weight.mul_(3)
    return network.eval()


def make(folder: Path, network: nn.Module, images: list[Path], size: tuple[int, int] = (SIZE, SIZE)) -> Made:
    name = "page"
    torch.manual_seed(1)
    torch.nn.init.normal_(network.get_classifier().weight, std=1.0)
    export(folder / name, CLASSES, timm.create_model("test_vmamba", num_classes=3))
    model = replace(ganglion.load_model(folder / name), network=strong(network), name=name)
    page = make_page(folder / f"{name}.html", model, images, size=size)
    return Made(page=page, model=model, images=images, size=size)


@pytest.fixture(scope="module")
def vmamba(tmp_path_factory) -> Made:
    folder = tmp_path_factory.mktemp("vmamba")
    images = [picture(folder / f"{name}.png", seed=i) for i, name in enumerate(("a & b", "<b>c"))]
    torch.manual_seed(0)
    return make(folder, timm.create_model("test_vmamba", num_classes=3), images)


@pytest.fixture(scope="module")
def sparx(tmp_path_factory) -> Made:
    folder = tmp_path_factory.mktemp("sparx")
    torch.manual_seed(0)
    return make(
        folder, timm.create_model("test_sparx_mamba", num_classes=3), [picture(folder / "a.png", seed=2)]
    )


def python_maps(made: Made, image: int = 0):
    """A function (layer, **asked) -> the map in float64, as `scan_map` has it."""
    layers = list(scan_layers(made.model.network).items())
    inputs = layer_inputs(made.model.network, made.input(image))

    def ask(layer: int, **asked) -> np.ndarray:
        name, mixer = layers[layer]
        x, earlier = inputs[name]
        mixer = copy.deepcopy(mixer).double()
        mixer.backend = "torch"
        return scan_map(mixer, x.double(), earlier=[e.double() for e in earlier], **asked).numpy().ravel()

    return ask, [tuple(x.shape[2:]) for x, _ in inputs.values()]


def assert_close(found: list[float], expected: np.ndarray, bound: float = BOUND) -> None:
    assert np.abs(np.array(found) - expected).max() <= bound * np.abs(expected).max()


def check_maps(made: Made, browser, layers, image: int = 0) -> None:
    ask, sizes = python_maps(made, image)
    with Opened(browser, made.page) as page:
        for layer in layers:
            height, width = sizes[layer]
            for pixel in {(0, 0), (height // 2, width // 3), (height - 1, width - 1)}:
                for mode in MODES:
                    for reads, route in ((True, None), (False, None), (True, 1), (False, 3)):
                        found = page.map(
                            image=image, layer=layer, mode=mode, route=route, pixel=pixel, reads=reads
                        )
                        assert_close(found, ask(layer, mode=mode, route=route, query=pixel, reads=reads))


def test_numbers_are_pythons(vmamba, sparx, browser):
    check_maps(vmamba, browser, (0, 2, 4), image=1)
    check_maps(sparx, browser, (1, 8))


@pytest.mark.parametrize(("scan", "size"), [("rot2d", (40, 64)), ("cascade2d", (SIZE, SIZE))])
def test_numbers_of_other_patterns_states_and_sizes(scan, size, tmp_path, browser):
    torch.manual_seed(2)
    network = timm.create_model("test_vmamba", num_classes=3, scan=scan, d_state=3)
    check_maps(make(tmp_path, network, [picture(tmp_path / "a.png", seed=3)], size), browser, (0,))


@pytest.mark.parametrize("scale", [packing.SCALE_16, packing.SCALE_20])
def test_packed_numbers(vmamba, browser, scale):
    """Of each (k, p) to half a step; zeros and the largest exactly."""
    values = np.random.default_rng(0).normal(size=(2, 5, 3)) * np.array([1e-3, 1, 1e4])
    values[1, :, 1] = 0
    values[0, 2] = 0
    with Opened(browser, vmamba.page) as page:
        found = page.page.evaluate("packed => ganglion.unpack(packed)", packing.fixed(values, scale))
        floats = page.page.evaluate("packed => ganglion.unpack(packed)", packing.floats(values))
    found, largest = np.reshape(found, values.shape), np.abs(values).max(1, keepdims=True)
    np.testing.assert_array_equal(floats, values.astype(np.float32).ravel())
    assert (np.abs(found - values) <= (0.501 / scale + 1e-7) * largest).all()
    assert (found[values == 0] == 0).all()


def test_large_networks_are_packed(vmamba, tmp_path, monkeypatch, browser):
    """In less bytes, to about the same maps."""
    monkeypatch.setattr(record, "SMALL", 0)
    small = make_page(tmp_path / "small.html", vmamba.model, vmamba.images[:1])
    asked = {"layer": 1, "pixel": (2, 1)}
    with Opened(browser, vmamba.page) as page, Opened(browser, small) as other:
        packed = other.page.evaluate("ganglion.data.layers[0].dtWeight")
        assert packed["scale"] == packing.SCALE_16 and "float32" not in packed
        assert_close(other.map(**asked), np.array(page.map(**asked)), bound=1e-3)


def test_a_click_asks_a_pixel_and_the_address_remembers(vmamba, browser):
    ask, sizes = python_maps(vmamba)
    with Opened(browser, vmamba.page) as page:
        for layer, part in ((0, (0.31, 0.72)), (1, (0.93, 0.05)), (3, (0.4, 0.6))):
            height, width = sizes[layer]
            page.page.select_option("#layer", str(layer))
            box = page.page.locator("#whole").bounding_box()
            at = {"x": part[1] * box["width"], "y": part[0] * box["height"]}
            page.page.locator("#whole").click(position=at)
            row, column = int(part[0] * height), int(part[1] * width)
            state = page.state()
            assert (state["layer"], state["row"], state["column"]) == (layer, row, column)
            shown = page.page.evaluate("ganglion.shown()")
            assert_close(shown["whole"], ask(layer, query=(row, column)))
            assert_close(shown["routes"][2], ask(layer, route=2, query=(row, column)))
            assert f"row {row + 1}, column {column + 1} of {height} x {width}" in page.page.inner_text(
                "#whole-caption"
            )
        page.page.locator("#whole").hover(position={"x": 8, "y": 8})
        assert page.page.inner_text("#value").startswith("row 1, column 1: ")
        page.page.click("#view >> text=is read by")
        page.page.click("#mode >> text=fading alone")
        assert_close(
            page.page.evaluate("ganglion.shown()")["whole"],
            ask(3, query=(row, column), mode="ww", reads=False),
        )
        page.page.wait_for_timeout(500)
        fragment, state = page.page.evaluate("location.hash"), page.state()
        assert f"row={row}" in fragment and "mode=ww" in fragment
    with Opened(browser, vmamba.page, fragment=fragment) as page:
        assert page.state() == state
    with Opened(browser, vmamba.page, fragment="#layer=99&row=-1&mode=x&opacity=&image=two") as page:
        assert page.state()["mode"] == "CwBdtw" and page.state()["layer"] == 0


@pytest.mark.parametrize("width", [400, 1100])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_both_widths_and_themes(vmamba, browser, width, theme):
    """Nothing is wider than the page, and every picture shows something."""
    with Opened(browser, vmamba.page, viewport={"width": width, "height": 800}, color_scheme=theme) as page:
        assert page.page.evaluate("document.documentElement.scrollWidth") == width
        assert page.page.evaluate("document.documentElement.dataset.theme") == theme
        ground = page.page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (sum(map(int, re.findall(r"\d+", ground)[:3])) < 200) == (theme == "dark")
        image = np.asarray(Image.open(BytesIO(page.page.screenshot(full_page=True))).convert("RGB"))
        assert image.shape[1] == width and image.std() > 20
        for canvas in page.page.query_selector_all("canvas"):
            assert canvas.evaluate(COLOURS) > 8, canvas.get_attribute("id")
            assert canvas.get_attribute("aria-label")
        page.page.select_option("#theme", "dark" if theme == "light" else "light")
        assert page.page.evaluate("document.documentElement.dataset.theme") != theme


def test_by_keyboard_alone(sparx, browser):
    with Opened(browser, sparx.page) as page:
        reached = []
        for _ in range(60):
            page.page.keyboard.press("Tab")
            focused = "document.activeElement.id || document.activeElement.getAttribute('aria-label') || ''"
            reached.append(page.page.evaluate(focused))
        for name in (
            "layer",
            "whole",
            "power",
            "opacity",
            "play",
            "back",
            "step",
            "speed",
            "squares",
            "theme",
        ):
            assert name in reached, name
        assert any(name.startswith("Save ") for name in reached)
        assert any(name.startswith("The input of stage 1") for name in reached)
        page.page.focus("#whole")
        before = page.state()
        for key in ("ArrowUp", "ArrowLeft", "ArrowLeft", "PageDown", "m", "r"):
            page.page.keyboard.press(key)
        state = page.state()
        assert (state["layer"], state["mode"], state["view"]) == (1, "CwBw", "read")
        page.page.keyboard.press("PageUp")
        page.page.keyboard.press("Shift+ArrowDown")
        assert page.state()["row"] > before["row"]
        page.page.focus(".plan .node")
        for key in ("ArrowDown", "ArrowDown", "ArrowRight", "ArrowRight", "Enter"):
            page.page.keyboard.press(key)
        layer = page.page.evaluate("ganglion.data.layers[ganglion.state().layer]")
        assert (layer["stage"], layer["block"]) == (2, 1)
        assert page.page.evaluate("document.activeElement.id") == "whole"


def test_the_connections_are_the_plans(sparx, browser):
    stages = [stage.plan for stage in sparx.model.network.stages]
    with Opened(browser, sparx.page) as page:
        nodes = page.page.query_selector_all(".plan .node")
        assert len(nodes) == sum(plan.depth + 1 for plan in stages)
        places = [(s, i) for s, plan in enumerate(stages) for i in range(-1, plan.depth)]
        s = max(range(4), key=lambda s: len(stages[s].ganglions))
        plan = stages[s]
        layer = plan.ganglions[-2] if len(plan.ganglions) > 1 else plan.ganglions[-1]
        nodes[places.index((s, layer))].hover()
        reads = {(s, layer - 1), *((s, i) for i in plan.reads[layer])}
        readers = {(s, i) for i in range(layer + 1, plan.depth) if layer in plan.reads[i] or i == layer + 1}
        for kind, expected in (("reads", reads), ("read", readers)):
            found = {
                place
                for node, place in zip(nodes, places, strict=True)
                if kind in node.get_attribute("class").split()
            }
            assert found == expected, kind
        said = page.page.inner_text("#plan-said")
        assert said.startswith(f"Stage {s + 1}, block {layer + 1} reads ") and "is read by" in said


def test_the_walk(vmamba, browser):
    with Opened(browser, vmamba.page) as page:
        step = page.state()["step"]
        page.page.click("#forward")
        assert page.state()["step"] == step + 1
        page.page.click("#back")
        assert page.state()["step"] == step
        page.page.select_option("#speed", "7")
        page.page.click("#play")
        page.page.wait_for_function(f"ganglion.state().step > {step}")
        page.page.click("#play")
        stopped = page.state()["step"]
        page.page.wait_for_timeout(300)
        assert page.state()["step"] == stopped
        page.page.evaluate("ganglion.choose({step: 10})")
        # The third route walks backwards: before it, at the top, nothing glows.
        for k, glowing in ((0, 0), (2, 1)):
            found = page.page.evaluate(GLOW, k)
            assert found[glowing] > 5 * (found[1 - glowing] + 1)


def test_every_panel_is_saved(sparx, browser, tmp_path):
    with Opened(browser, sparx.page) as page:
        names = []
        for i, button in enumerate(page.page.query_selector_all(".save")):
            with page.page.expect_download() as download:
                button.click()
            names.append(download.value.suggested_filename)
            download.value.save_as(tmp_path / f"{i}.png")
            image = Image.open(tmp_path / f"{i}.png")
            assert image.width == 2080 and image.height > 300 and np.asarray(image.convert("L")).std() > 10
        assert len(set(names)) == 6 and all(re.fullmatch(r"page_a\.png_[\w.-]+\.png", name) for name in names)
        assert any("stages.0.blocks.0.mixer_5-5_CwBdtw_reads" in name for name in names), names


def test_fields_and_classes(vmamba, browser):
    with Opened(browser, vmamba.page, fragment="#image=1") as page:
        data = page.page.evaluate("ganglion.data.images[1]")
        entry = ganglion.predict(vmamba.model, vmamba.images)[1]
        shown = [item.inner_text().split("%")[0] for item in page.page.query_selector_all("#bars li")]
        assert [c["name"] for c in data["classes"]] == [p["name"] for p in entry["predictions"]]
        for c, p, text in zip(data["classes"], entry["predictions"], shown, strict=True):
            assert abs(c["probability"] - p["probability"]) < 1e-5
            assert float(text) == pytest.approx(100 * p["probability"], abs=0.051)
        tables = page.page.query_selector_all("#field-tiles table")
        for stage, (field, table) in enumerate(zip(data["fields"], tables, strict=True)):
            expected = effective_receptive_field(vmamba.model.network, vmamba.input(1), stage)
            assert field["largest"] == pytest.approx(float(expected.max()), rel=1e-5)
            squares = contribution_squares(expected)
            assert [s["side"] for s in field["squares"]] == [s.side for s in squares]
            sides = re.findall(r"%\s+(more than )?(\d+) px", table.inner_text())
            assert [(bool(more), int(side)) for more, side in sides] == [
                (s.side is None, s.side or s.largest) for s in squares
            ]
            image = page.page.evaluate(GREY, field["shades"])
            shades = (expected / expected.max()).pow(0.2).numpy().ravel()
            assert np.abs(np.array(image) / 255 - shades).max() < 1 / 255


def test_names_are_text(vmamba, browser):
    with Opened(browser, vmamba.page) as page:
        names = [button.inner_text() for button in page.page.query_selector_all("#images button")]
        assert names == ["a & b.png", "<b>c.png"] and "<b>c.png" in page.page.title()
        bars = page.page.inner_text("#bars")
        assert all(name in bars for name in CLASSES)
        page.page.click("#images button >> nth=1")
        assert page.state()["image"] == 1
