"""A browser for tests of pages; they are skipped where there is none."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

SECONDS = 60  # that a page may take for anything: a busy machine is no fault


def executable() -> str:
    """Chromium, or a skip that says what is missing."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not found:
        pytest.skip("no Chromium is installed (Debian: apt-get install chromium)")
    return found


@contextmanager
def launched() -> Iterator[Any]:
    """Chromium, driven by Playwright."""
    api = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    path = executable()
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def opened(browser: Any, file: Path, **context: Any) -> Iterator[Any]:
    """A page from the disk, which must ask for nothing but files beside it and report no error."""
    wrong = []
    page = browser.new_page(**context)
    page.set_default_timeout(SECONDS * 1000)
    page.on("request", lambda r: r.url.startswith(("file:", "data:")) or wrong.append(f"request {r.url}"))
    page.on("console", lambda message: wrong.append(f"console {message.text}"))
    page.on("pageerror", lambda error: wrong.append(f"error {error}"))
    page.on("dialog", lambda dialog: (wrong.append(f"dialog {dialog.message}"), dialog.dismiss()))
    page.goto(file.absolute().as_uri())
    yield page
    page.close()
    assert wrong == []


@contextmanager
def fine(file: Path, width: int, scheme: str) -> Iterator[Any]:
    """A page at a width in pixels, light or dark, that nobody has to scroll sideways or is kept out of."""
    axe = pytest.importorskip(
        "axe_playwright_python.sync_playwright", reason="pip install axe-playwright-python"
    )
    size = {"width": width, "height": 800}
    with launched() as chromium, opened(chromium, file, viewport=size, color_scheme=scheme) as page:
        assert not is_wide(page)
        assert faults(axe, page) == []
        yield page


def is_wide(page: Any) -> bool:
    """Whether one has to scroll sideways."""
    return bool(page.evaluate("() => document.documentElement.scrollWidth > innerWidth"))


def faults(axe: Any, page: Any) -> list[str]:
    """What axe finds that keeps people out; axe: the module of `axe-playwright-python`."""
    found = axe.Axe().run(page).response["violations"]
    return [
        f"{one['id']}: {one['nodes'][0]['html']}"
        for one in found
        if one["impact"] in ("serious", "critical")
    ]
