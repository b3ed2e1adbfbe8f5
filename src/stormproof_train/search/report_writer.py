"""Keeps ``answer.json`` and ``report.html`` of a search up to date."""

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
"""Minimum seconds between two updates during a search."""


class ReportWriter:
    """Writes ``answer.json`` and ``report.html``.

    Args:
        folder: Folder of the search.
        collect_numbers: Returns the current numbers of the search.
    """

    def __init__(self, folder: SearchFolder, collect_numbers: Callable[[], SearchNumbers]) -> None:
        self._folder, self.collect_numbers = folder, collect_numbers
        self._last_write = -math.inf

    def refresh(self) -> None:
        """Writes both files unless they were written recently. A failure only prints a warning."""
        if time.monotonic() - self._last_write < MIN_INTERVAL_SECONDS:
            return
        try:
            self.write(self.collect_numbers())
        except Exception as error:  # noqa: BLE001 (the next update retries, and the last write raises)
            print_line(f"warning: {self._folder.path / REPORT_FILE} could not be written: {error}")

    def write(self, numbers: SearchNumbers) -> Path:
        """Writes both files and returns the path of the page."""
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
