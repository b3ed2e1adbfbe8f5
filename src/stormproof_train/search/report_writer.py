"""``answer.json`` and ``report.html`` of a search, kept up to date while it goes on."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path

from stormproof.checkpoint import atomic_write
from stormproof_train.console import print_line
from stormproof_train.report.kit.json_numbers import to_json
from stormproof_train.report.kit.page import render_html
from stormproof_train.search.folder import SearchFolder
from stormproof_train.search.records import SearchNumbers
from stormproof_train.search.report.search_page import search_page

REPORT_FILE = "report.html"
MIN_INTERVAL_SECONDS = 60.0
"""A search that goes on writes its page at most so often."""


class ReportWriter:
    """Writes both.

    Args:
        folder: of the search.
        collect_numbers: what is to be said now.
    """

    def __init__(self, folder: SearchFolder, collect_numbers: Callable[[], SearchNumbers]) -> None:
        self._folder, self.collect_numbers = folder, collect_numbers
        self._last_write = -math.inf

    def refresh(self) -> None:
        """Writes them, if that was not done a moment ago; what goes wrong there costs no search."""
        if time.monotonic() - self._last_write < MIN_INTERVAL_SECONDS:
            return
        try:
            self.write(self.collect_numbers())
        except Exception as error:  # noqa: BLE001 (whatever it is: it is tried again, and an error at the end)
            print_line(f"warning: {self._folder.path / REPORT_FILE} could not be written: {error}")

    def write(self, numbers: SearchNumbers) -> Path:
        """Writes them, and says where the page is."""
        plain_numbers = to_json(numbers)
        page = render_html(search_page(plain_numbers))
        for name, content in (
            ("answer.json", f"{json.dumps(plain_numbers, indent=1, allow_nan=False)}\n"),
            (REPORT_FILE, page),
        ):
            with atomic_write(self._folder.path / name) as file:
                file.write(content.encode())
        self._last_write = time.monotonic()
        return self._folder.path / REPORT_FILE
