"""Stack frames of the threads of this process, and whether a debugger controls them."""

from __future__ import annotations

import sys
from types import FrameType

DEBUGGER_MODULES = {"bdb", "pdb", "ipdb", "pudb", "pydevd", "_pydevd_bundle", "debugpy"}


def current_frames() -> dict[int, FrameType]:
    """Returns the innermost frame of each thread that runs Python, by ``threading.get_ident``."""
    return sys._current_frames()  # noqa: SLF001 (documented despite the underscore)


def is_debugged(frame: FrameType | None) -> bool:
    """Returns True if a debugger is active in a thread.

    A debugger is active if it owns a frame of the thread (at its prompt), traces a frame (between two prompts), or
    uses ``sys.monitoring``. A thread that is traced for coverage cannot be distinguished from a debugged thread.

    Args:
        frame: Innermost frame of the thread. None if the thread has ended.

    Example:
        >>> is_debugged(None)
        False
    """
    monitoring = getattr(sys, "monitoring", None)  # Python 3.12
    if monitoring is not None and monitoring.get_tool(monitoring.DEBUGGER_ID) is not None:
        return True
    while frame is not None:
        module = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        if frame.f_trace is not None or module in DEBUGGER_MODULES:
            return True
        frame = frame.f_back
    return False
