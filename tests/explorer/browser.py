"""The system's Chromium, without its window."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def find_chromium() -> str:
    """Its path. Skips the test where there is none."""
    pytest.importorskip("playwright", reason="playwright is not installed: pip install playwright")
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"there is no Chromium: none of {', '.join(NAMES)} on the PATH")
    return found


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser of playwright's."""
    path = find_chromium()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--headless=new", "--no-sandbox"])
        yield browser
        browser.close()


class Opened:
    """A page, and all that it says on the console and asks for."""

    def __init__(self, browser: Any, file: Path, *, fragment: str = "", **options: Any):
        self.errors: list[str] = []
        self.requests: list[str] = []
        self.page = browser.new_page(**({"viewport": {"width": 1100, "height": 900}} | options))
        self.page.on("console", lambda message: self.errors.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.url = file.resolve().as_uri()
        self.page.goto(self.url + fragment)
        self.page.wait_for_selector("html[data-ready]", timeout=30_000)

    def __enter__(self) -> Opened:
        return self

    def __exit__(self, kind: object, *rest: object) -> None:
        self.page.close()
        if kind is None:
            asked = {url.partition("#")[0] for url in self.requests} - {self.url}
            assert not self.errors, self.errors
            assert not asked, asked

    def state(self) -> dict[str, Any]:
        return self.page.evaluate("ganglion.state()")

    def map(self, **asked: Any) -> list[float]:
        return self.page.evaluate("asked => ganglion.map(asked)", asked)
