"""Whether somebody looks at a program with a debugger."""

from __future__ import annotations

import sys
from types import FrameType

DEBUGGER_MODULES = {"bdb", "pdb", "ipdb", "pudb", "pydevd", "_pydevd_bundle", "debugpy"}


def is_debugged(frame: FrameType | None) -> bool:
    """Whether a debugger is at work in the thread whose innermost frame this is.

    It is where one of the frames belongs to a debugger, as at its prompt, or is traced, as between two prompts; and
    where a debugger uses ``sys.monitoring``. Nobody can tell one that is traced for its coverage from that.

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
