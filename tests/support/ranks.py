"""Runs test code on several ranks, in processes forked from one that has imported everything."""

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch.multiprocessing as mp
from torch.distributed.elastic.utils.distributed import get_free_port

from tests.support import forked_command


def call_on_two_ranks(function: Callable[..., None], *arguments: Any, timeout: float = 200) -> None:
    """Calls ``function(rank, *arguments)`` in two processes, as :func:`call_on_ranks` does."""
    call_on_ranks(2, function, *arguments, timeout=timeout)


def call_on_ranks(count: int, function: Callable[..., None], *arguments: Any, timeout: float = 200) -> None:
    """Calls ``function(rank, *arguments)`` in several processes.

    The processes inherit the environment of the fork server, which may have started earlier. Pass ports and paths as
    arguments.

    Args:
        count: Number of processes.
        function: Function of a module, so that it can be pickled.
        arguments: Further arguments.
        timeout: Seconds after which the processes are killed.

    Raises:
        torch.multiprocessing.ProcessRaisedException: If a rank raises. Contains its traceback.
        torch.multiprocessing.ProcessExitedException: If a rank exits with a nonzero code.
        TimeoutError: If a rank does not finish within ``timeout``.
    """
    deadline = time.monotonic() + timeout
    context: Any = mp.start_processes(function, arguments, nprocs=count, join=False, start_method="forkserver")
    while not context.join(max(0.0, deadline - time.monotonic())):
        if time.monotonic() >= deadline:
            for process in context.processes:
                process.kill()
            raise TimeoutError(f"{function.__name__} did not finish on all ranks within {timeout} s")


def join_two_ranks(rank: int, port: int) -> None:
    """Sets the environment of one of two ranks on this host, in a process of :func:`call_on_two_ranks`."""
    os.environ.update(
        LOCAL_RANK=str(rank), NODE_RANK="0", WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )


def run_on_two_ranks(script: str, *arguments: str, cwd: Path | None = None, timeout: float = 200) -> str:
    """Runs a script on two ranks with the environment of ``torchrun --nproc-per-node=2`` and returns their output.

    Args:
        script: Path of a test module, usually its own ``__file__``.
        arguments: Arguments of the script.
        cwd: Working directory. The current one if None.
        timeout: Seconds after which both ranks are killed.

    Returns:
        Standard output of rank 0, then of rank 1.

    Raises:
        Exception: Any exception of :func:`call_on_two_ranks`, with the standard error of both ranks as notes.
    """
    environment = os.environ | {
        "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0", "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(get_free_port()), "TORCHELASTIC_RUN_ID": "none",
    }  # fmt: skip
    with TemporaryDirectory() as name:
        folder = Path(name)
        try:
            call_on_two_ranks(
                _run_script, Path(script), arguments, cwd or Path.cwd(), environment, folder, timeout=timeout
            )
        except Exception as error:
            for file in sorted(folder.glob("stderr*")):
                error.add_note(f"{file.name}: {file.read_text()}")
            raise
        return "".join((folder / f"stdout{rank}").read_text() for rank in range(2))


def _run_script(
    rank: int, script: Path, arguments: tuple[str, ...], cwd: Path, environment: Mapping[str, str], folder: Path
) -> None:
    environment = {**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)}
    outputs = (folder / f"stdout{rank}", folder / f"stderr{rank}")
    forked_command.run_script(script, list(arguments), cwd, environment, *outputs)
