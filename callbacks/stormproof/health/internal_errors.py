"""Describes exceptions in the diagnosis, which do not end the run."""

from __future__ import annotations

import traceback
from pathlib import Path

MAX_LENGTH = 200
"""Maximum number of characters of a message."""


def is_raised_by_signal_handler(error: Exception) -> bool:
    """Returns whether torch raised the error because a loader worker died. It can raise it in any code."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return frame.f_globals.get("__name__") == "torch.utils.data._utils.signal_handling"


def describe_error(error: Exception) -> str:
    """Returns a clause with the type, the message and the place of an exception, such as ``failed with …``."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return (
        f"failed with {type(error).__name__}: {str(error)[:MAX_LENGTH]} (in {frame.name}, {Path(frame.filename).name} "
        f"line {frame.lineno})"
    )
