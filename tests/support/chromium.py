"""A headless browser for tests of HTML pages."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright


@contextmanager
def launch_chromium() -> Iterator[Browser]:
    """Launches headless Chromium."""
    path = shutil.which("chromium")
    assert path, "chromium is not installed. Run `apt-get install chromium`."
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path)
        yield browser
        browser.close()


def open_page(browser: Browser, file: Path, width: int, scheme: str) -> tuple[Page, list[str]]:
    """Returns the rendered page and the list of its console errors."""
    page = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme).new_page()  # pyright: ignore[reportArgumentType]
    console_errors: list[str] = []
    page.on(
        "console", lambda message: console_errors.append(message.text) if message.type in {"error", "warning"} else None
    )
    page.on("pageerror", lambda error: console_errors.append(str(error)))
    page.goto(file.as_uri())
    page.wait_for_selector("body[data-drawn]")
    return page, console_errors
