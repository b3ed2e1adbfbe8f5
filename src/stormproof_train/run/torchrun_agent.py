"""Ends this process with its torchrun agent, and the agent if a restart is useless."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress

PR_SET_PDEATHSIG = 1
"""Option of ``prctl(2)`` for the signal that a process gets when its parent dies."""


def terminate_with_agent(environ: Mapping[str, str] = os.environ) -> None:
    """Lets Linux send SIGTERM to this process when the torchrun agent that started it dies.

    Without the agent, the process would keep the folder locked for the attempt that replaces it, and no agent would
    restart the process. The death of an agent before this call is not detected.

    Args:
        environ: Environment variables, which show if torchrun started the process.
    """
    if "TORCHELASTIC_RUN_ID" in environ and sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def terminate_agent() -> None:
    """Ends the torchrun agent that started this process, because it would restart the process after any exit code."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return
    import psutil  # noqa: PLC0415 (the command must start without it to report that it is missing)

    with suppress(psutil.Error):
        agent = psutil.Process().parent()
        if agent is not None and any("torchrun" in arg or "torch.distributed" in arg for arg in agent.cmdline()):
            agent.terminate()
