"""The torchrun that started this process: one does not outlive the other where nothing is to be started again."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress

PR_SET_PDEATHSIG = 1
"""Of ``prctl(2)``: the signal that a process gets when the one that started it dies."""


def terminate_with_agent(environ: Mapping[str, str] = os.environ) -> None:
    """Has Linux tell this process to end, by SIGTERM, when the torchrun that started it dies.

    Going on without it, the process would keep the folder from the attempt that is started in its place, and nobody
    would start it again. One that dies before this is called is not noticed.

    Args:
        environ: tells whether torchrun started it.
    """
    if "TORCHELASTIC_RUN_ID" in environ and sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def terminate_agent() -> None:
    """Ends the torchrun that started this process, which else starts it again, whatever its exit code says."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return
    import psutil  # noqa: PLC0415 (the command starts where nothing is installed, and says so)

    with suppress(psutil.Error):
        agent = psutil.Process().parent()
        if agent is not None and any("torchrun" in arg or "torch.distributed" in arg for arg in agent.cmdline()):
            agent.terminate()
