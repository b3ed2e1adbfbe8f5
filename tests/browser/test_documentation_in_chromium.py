"""The documentation site, read from files and without a network."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.support.chromium import launch_chromium
from tests.support.forked_command import ROOT

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, timeout=200)
    return folder


def test_pages_and_search_load_nothing_from_the_network(site: Path):
    with launch_chromium() as browser:
        page = browser.new_page()
        requests: list[str] = []
        errors: list[Exception] = []
        page.on("request", lambda request: requests.append(request.url))
        page.on("pageerror", lambda error: errors.append(error))  # noqa: PLW0108 (playwright takes functions only)
        page.goto((site / "reference" / "api" / "losses.html").as_uri())
        assert page.locator("math").count() > 10
        page.keyboard.press("f")
        page.keyboard.type("quarantine")
        expect(page.locator(".md-search-result__item").first).to_be_visible()
        assert [url for url in requests if not url.startswith(("file:", "data:", "about:"))] == []
        assert errors == []


def test_docstrings_have_no_markup_left(site: Path):
    pages = sorted((site / "reference" / "api").glob("*.html"))
    assert len(pages) > 10
    for page in pages:
        text = page.read_text()
        for markup in (":math:", ":class:", ":func:", ":meth:", ".. math::", "<p>&gt;&gt;&gt;"):
            assert markup not in text, (page.name, markup)
