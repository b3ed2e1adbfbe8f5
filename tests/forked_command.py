"""``python train.py …`` as a process of its own, forked from one that has imported everything.

Importing takes four seconds and a fork milliseconds. Each command is a real process, to be killed for real: it has a
session, a folder, an environment and a ``__main__`` of its own, and runs ``train.py`` from its first line.
"""

from __future__ import annotations

import gc
import json
import os
import runpy
import select
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

TRAIN = Path(__file__).resolve().parents[1] / "train.py"
IMPORTED = ("stormproof_train.main", "stormproof_train.data.digits", "stormproof_train.data.diabetes", "wandb")


class ForkedCommand:
    """Runs the command, each time in a new process; itself a process that waits for orders.

    Example::

        with ForkedCommand() as command:
            done = command.run(["--version"], cwd=folder, env=os.environ, timeout=60)
    """

    def __enter__(self) -> Self:
        self._server = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.close()
        self._server.wait(20)
        self._server.stdout.close()

    def run(
        self, words: list[str], *, cwd: Path, env: Mapping[str, str], timeout: float
    ) -> subprocess.CompletedProcess[str]:
        """As ``subprocess.run`` with ``capture_output`` and ``text``.

        Raises:
            subprocess.TimeoutExpired: after ``timeout`` seconds, when the command and its children have been killed.
        """
        with TemporaryDirectory() as folder:
            files = {name: str(Path(folder, name)) for name in ("stdout", "stderr")}
            self._tell({"words": words, "cwd": str(cwd), "env": dict(env), **files})
            pid = self._hear(60)["pid"]
            try:
                code = self._hear(timeout)["code"]
            except TimeoutError:
                os.killpg(pid, signal.SIGKILL)
                self._hear(20)
                raise subprocess.TimeoutExpired(words, timeout) from None
            texts = {name: Path(file).read_text() for name, file in files.items()}
        return subprocess.CompletedProcess(words, code, **texts)

    def _tell(self, order: Mapping[str, Any]) -> None:
        assert self._server.stdin is not None
        self._server.stdin.write(json.dumps(order).encode() + b"\n")
        self._server.stdin.flush()

    def _hear(self, seconds: float) -> dict[str, int]:
        assert self._server.stdout is not None
        ready, *_ = select.select([self._server.stdout], [], [], seconds)
        if not ready:
            raise TimeoutError
        return json.loads(self._server.stdout.readline())


def _wait_for_orders() -> dict[str, Any] | None:
    """Forks a process for each line of the input; returns in that process, or at the input's end."""
    answers = os.dup(1)
    os.dup2(2, 1)  # whatever is printed meanwhile is no answer
    while line := sys.stdin.buffer.readline():
        pid = os.fork()
        if pid == 0:
            os.close(answers)
            return json.loads(line)
        os.write(answers, json.dumps({"pid": pid}).encode() + b"\n")
        _, status = os.waitpid(pid, 0)
        os.write(answers, json.dumps({"code": os.waitstatus_to_exitcode(status)}).encode() + b"\n")
    return None


def _obey(order: Mapping[str, Any]) -> None:
    os.setsid()
    os.chdir(order["cwd"])
    os.environ.clear()
    os.environ.update(order["env"])
    for descriptor, name in ((0, os.devnull), (1, order["stdout"]), (2, order["stderr"])):
        opened = os.open(name, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        os.dup2(opened, descriptor)
        os.close(opened)
    sys.argv = [str(TRAIN), *order["words"]]
    runpy.run_path(str(TRAIN), run_name="__main__")


if __name__ == "__main__":
    sys.path[:1] = [str(TRAIN.parent / "src"), str(TRAIN.parent / "callbacks")]
    for name in IMPORTED:
        __import__(name)
    gc.freeze()  # else each process takes a second and a half at its end to copy and collect what was imported
    ordered = _wait_for_orders()
    if ordered is not None:
        _obey(ordered)
