"""Runs a test module as a script on two ranks."""

import os
import signal
import socket
import subprocess
import time
from contextlib import suppress
from multiprocessing import connection
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.support import forked_command

FORKSERVER = forked_command.FORKS.get_start_method()
"""Start method of ``torch.multiprocessing.start_processes``: forks processes that have imported everything."""


def run_on_two_ranks(script: str, *arguments: str, cwd: Path | None = None, timeout: float = 200) -> str:
    """Runs a script on two ranks, as ``torchrun --nproc-per-node=2`` does, and returns their standard output.

    Both are forked from a process that has imported everything.

    Args:
        script: Path of a test module, usually its own ``__file__``.
        arguments: Arguments of the script.
        cwd: Working directory. The current one if None.
        timeout: Timeout in seconds, after which both ranks are killed.

    Raises:
        AssertionError: If a rank fails. The other one is killed.
        subprocess.TimeoutExpired: If a rank does not finish within ``timeout``.
    """
    environment = os.environ | {
        "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0", "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()), "TORCHELASTIC_RUN_ID": "none",
    }  # fmt: skip
    with TemporaryDirectory() as folder:
        outputs, errors = ([Path(folder, f"{name}{rank}.txt") for rank in range(2)] for name in ("out", "err"))
        processes = [
            forked_command.start(
                list(arguments), script=Path(script), cwd=cwd or Path.cwd(), stdout=outputs[rank], stderr=errors[rank],
                env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            )
            for rank in range(2)
        ]  # fmt: skip
        deadline = time.monotonic() + timeout
        try:
            while any(process.exitcode is None for process in processes):
                connection.wait([p.sentinel for p in processes if p.exitcode is None], deadline - time.monotonic())
                if time.monotonic() > deadline:
                    raise subprocess.TimeoutExpired([script, *arguments], timeout)
                if any(process.exitcode for process in processes):
                    break
        finally:
            for process in processes:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid or 0, signal.SIGKILL)
                process.join()
        failed = [rank for rank, process in enumerate(processes) if process.exitcode]
        assert not failed, "".join(f"rank {rank}: {errors[rank].read_text()}" for rank in failed)
        return "".join(output.read_text() for output in outputs)


def free_port() -> int:
    """Returns a port of the loopback interface that no process uses."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
