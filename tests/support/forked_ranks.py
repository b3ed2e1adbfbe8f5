"""Forks the ranks that Lightning's Trainer would start as new Python processes, whose imports take seconds."""

from __future__ import annotations

import os
import pickle
import runpy
import subprocess
import sys
from types import SimpleNamespace
from typing import Any, BinaryIO, NoReturn

from pytorch_lightning.strategies.launchers import subprocess_script

from tests.support.fork_exit import run_and_exit


def fork_ranks_of_trainer(count: int) -> None:
    """Forks processes that wait until the Trainer of this process starts its other ranks.

    A waiting process has imported what this process has, and has run nothing of its script yet. It ends with this
    process if no rank is started.

    Args:
        count: Number of ranks that the Trainer starts.
    """
    waiting: list[tuple[int, BinaryIO]] = []
    for _ in range(count):
        read_end, write_end = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(write_end)
            for _, requests in waiting:
                requests.close()
            _run_rank(read_end)
        os.close(read_end)
        waiting.append((pid, os.fdopen(write_end, "wb")))

    class ForkedRank(subprocess.Popen[bytes]):
        """Child process that was forked instead of executed."""

        def _execute_child(  # pyright: ignore[reportIncompatibleMethodOverride]
            self, args: list[str], executable: Any, preexec_fn: Any, close_fds: Any, pass_fds: Any,
            cwd: str | None, env: dict[str, str], *others: Any,
        ) -> None:  # fmt: skip
            self.pid, requests = waiting.pop(0)
            self._child_created = True
            with requests:
                pickle.dump((args[1:], cwd, dict(env)), requests)

    subprocess_script.subprocess = SimpleNamespace(Popen=ForkedRank)  # pyright: ignore[reportAttributeAccessIssue]


def create_media_folder() -> None:
    """Creates a separate media folder of W&B for this fork. W&B deletes the folder when the process exits."""
    from wandb.sdk.data_types._private import MEDIA_TMP

    MEDIA_TMP._finalizer.detach()  # pyright: ignore[reportAttributeAccessIssue]; the parent deletes its folder
    MEDIA_TMP.__init__("wandb-media")  # in place, because modules of W&B have imported the object


def _run_rank(read_end: int) -> NoReturn:
    """Waits for the arguments of a script, runs it and exits with its code."""
    with os.fdopen(read_end, "rb") as pipe:
        request = pipe.read()
    if not request:
        os._exit(0)
    sys.argv, cwd, environment = pickle.loads(request)
    os.environ.clear()
    os.environ.update(environment)
    if cwd is not None:
        os.chdir(cwd)
    create_media_folder()
    run_and_exit(lambda: runpy.run_path(sys.argv[0], run_name="__main__"))
