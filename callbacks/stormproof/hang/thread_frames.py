"""Stack frames of the threads of this process."""

from __future__ import annotations

import sys
from types import FrameType


def current_frames() -> dict[int, FrameType]:
    """Returns the innermost frame of each thread that runs Python, by ``threading.get_ident``."""
    return sys._current_frames()  # noqa: SLF001 (documented despite the underscore)
