"""``answer.json`` and ``report.html`` of a search, kept up to date while it goes on."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from stormproof.checkpoint import atomic_write
from stormproof_train.console import say
from stormproof_train.report.kit.json_numbers import plain
from stormproof_train.report.kit.page import html
from stormproof_train.search.folder import SearchFolder
from stormproof_train.search.report.search_page import search_page

FILE = "report.html"
SECONDS_BETWEEN = 60.0
"""A search that goes on writes its page at most so often."""


class Page:
    """Writes both.

    Args:
        folder: of the search.
        numbers: what is to be said now.
    """

    def __init__(self, folder: SearchFolder, numbers: Callable[[], dict[str, Any]]) -> None:
        self._folder, self.numbers = folder, numbers
        self._written = -math.inf

    def refresh(self) -> None:
        """Writes them, if that was not done a moment ago; what goes wrong there costs no search."""
        if time.monotonic() - self._written < SECONDS_BETWEEN:
            return
        try:
            self.write(self.numbers())
        except Exception as error:  # noqa: BLE001 (whatever it is: it is tried again, and an error at the end)
            say(f"warning: {self._folder.path / FILE} could not be written: {error}")

    def write(self, numbers: Mapping[str, Any]) -> Path:
        """Writes them, and says where the page is."""
        told = plain(numbers)
        page = html(search_page(told))
        for name, content in (("answer.json", f"{json.dumps(told, indent=1, allow_nan=False)}\n"), (FILE, page)):
            with atomic_write(self._folder.path / name) as file:
                file.write(content.encode())
        self._written = time.monotonic()
        return self._folder.path / FILE
