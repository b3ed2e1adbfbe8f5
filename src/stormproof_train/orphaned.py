"""A process that torchrun started does not outlive it."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Mapping

PR_SET_PDEATHSIG = 1
"""Of ``prctl(2)``: the signal that a process gets when the one that started it dies."""


def end_with_torchrun(environ: Mapping[str, str] = os.environ) -> None:
    """Has Linux tell this process to end, by SIGTERM, when the torchrun that started it dies.

    Going on without it, the process would keep the folder from the attempt that is started in its place, and nobody
    would start it again.

    Args:
        environ: tells whether torchrun started it.
    """
    if "TORCHELASTIC_RUN_ID" in environ and sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
