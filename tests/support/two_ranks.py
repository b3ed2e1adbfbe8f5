"""Runs a test module as a script on two ranks."""

import os
import subprocess
import sys
from pathlib import Path

from tests.support.forked_command import ROOT


def run_on_two_ranks(script: str, *arguments: str, cwd: Path | None = None, timeout: float = 200) -> str:
    """Runs ``torchrun --nproc-per-node=2 script arguments`` and returns its standard output.

    Args:
        script: Path of a test module, usually its own ``__file__``.
        arguments: Arguments of the script.
        cwd: Working directory. The current one if None.
        timeout: Timeout in seconds. Kills the launcher.

    Raises:
        AssertionError: If a rank fails.
        subprocess.TimeoutExpired: If the launcher does not finish within ``timeout``.
    """
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", script, *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        launch, cwd=cwd, env=environment, capture_output=True, text=True, timeout=timeout, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
