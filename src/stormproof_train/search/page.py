"""``answer.json`` and ``report.html`` of a search, kept up to date while it goes on."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from typing import Any

from stormproof.checkpoint import atomic_write
from stormproof_train.console import say
from stormproof_train.report.page import html
from stormproof_train.report.plain import plain
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
        self._folder, self._numbers = folder, numbers
        self._written = -math.inf

    def refresh(self) -> None:
        """Writes them, if that was not done a moment ago; what goes wrong there costs no search."""
        if time.monotonic() - self._written < SECONDS_BETWEEN:
            return
        try:
            self.write()
        except Exception as error:  # noqa: BLE001 (whatever it is; the end of the search says it again)
            say(f"warning: {self._folder.path / FILE} could not be written: {error}")

    def write(self) -> dict[str, Any]:
        """Writes them, and gives back what they say."""
        numbers = self._numbers()
        told = plain(numbers)
        page = html(search_page(told))
        for name, content in (("answer.json", f"{json.dumps(told, indent=1, allow_nan=False)}\n"), (FILE, page)):
            with atomic_write(self._folder.path / name) as file:
                file.write(content.encode())
        self._written = time.monotonic()
        return numbers
