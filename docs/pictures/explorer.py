"""Draws docs/pictures/explorer.jpg: two panels of a page of `ganglion explore`, as a browser shows them.

    ganglion explore sparx_mamba_tiny --untrained --image cat.jpg -o page.html
    python docs/pictures/explorer.py page.html [FILE]

The README's is of `skimage.data.cat()`. Needs playwright and Chromium.
"""

from __future__ import annotations

import io
import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

PANELS = ("reading", "walking")
#: Layer, pixel and step that are shown.
STATE = "#layer=3&row=14&column=10&step=330"
GAP, GROUND = 24, (246, 245, 242)


def draw(page: Path, file: Path) -> None:
    with sync_playwright() as playwright:
        path = shutil.which("chromium") or shutil.which("google-chrome")
        browser = playwright.chromium.launch(executable_path=path, args=["--headless=new", "--no-sandbox"])
        tab = browser.new_page(viewport={"width": 1100, "height": 900}, device_scale_factor=1.5)
        tab.goto(page.resolve().as_uri() + STATE)
        tab.wait_for_selector("html[data-ready]")
        shots = [
            Image.open(io.BytesIO(tab.locator(f"#{name}").screenshot())).convert("RGB") for name in PANELS
        ]
        browser.close()
    width = max(shot.width for shot in shots) + 2 * GAP
    sheet = Image.new("RGB", (width, sum(shot.height + GAP for shot in shots) + GAP), GROUND)
    top = GAP
    for shot in shots:
        sheet.paste(shot, (GAP, top))
        top += shot.height + GAP
    sheet.save(file, quality=82)


if __name__ == "__main__":
    draw(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else Path(__file__).with_suffix(".jpg"))
