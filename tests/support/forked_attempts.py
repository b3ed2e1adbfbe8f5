"""Attempts of a training run in forks of this process, which kills them.

Importing torch and Lightning takes seconds, a fork milliseconds. Hundreds of attempts share one import.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch.distributed.elastic.utils.distributed import get_free_port

from stormproof.testing import FaultInjector
from tests.support.difference import find_differences
from tests.support.exact_resume_training import Cell, train

TIMEOUT_SECONDS, GRACE_SECONDS = 120.0, 20.0


@dataclass(frozen=True)
class Outcome:
    """Result of an attempt. ``results`` is None if it was killed."""

    was_killed: bool
    exit_codes: tuple[int, ...]
    results: list[dict[str, Any]] | None
    output: str


def run_attempt(
    cell: Cell,
    folder: Path,
    faults: Callable[[], Any] | None = None,
    kill_after: float | None = None,
    function: Callable[..., Any] = train,
    **options: Any,
) -> Outcome:
    """Forks one process per rank and kills all of them if one is stopped or after ``kill_after`` seconds.

    Args:
        cell: Cell to train.
        folder: Folder of the run.
        faults: Function that returns a callback with faults, called in each rank.
        kill_after: Seconds after which all ranks are killed.
        function: Training function.
        options: Additional arguments of ``function``.
    """
    with fork_ranks(cell, folder, faults, function, **options) as pids:
        was_killed, exit_codes = _wait_or_kill(pids, kill_after)
    succeeded = all(code == 0 for code in exit_codes)
    results = [folder / f"result{rank}.pt" for rank in range(cell.ranks)]
    return Outcome(
        was_killed,
        tuple(exit_codes),
        [torch.load(file, weights_only=False) for file in results] if succeeded else None,
        read_output(cell, folder),
    )


@contextmanager
def fork_ranks(
    cell: Cell,
    folder: Path,
    faults: Callable[[], Any] | None = None,
    function: Callable[..., Any] = train,
    **options: Any,
) -> Iterator[list[int]]:
    """Forks one process per rank, yields their process IDs, and kills remaining processes at the end.

    Each rank exits with the code of its function. Its result is in ``result<rank>.pt``, its output in
    ``output<rank>.txt``.
    """
    folder.mkdir(exist_ok=True, parents=True)
    port = get_free_port()
    results = [folder / f"result{rank}.pt" for rank in range(cell.ranks)]
    for file in results:
        file.unlink(missing_ok=True)
    pids = []
    with TemporaryDirectory() as scratch:  # killed processes cannot remove their own files
        for rank in range(cell.ranks):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12: pytest-xdist has a thread
                pid = os.fork()
            if pid == 0:
                tempfile.tempdir = scratch
                output = folder / f"output{rank}.txt"
                _run_rank(rank, cell, folder, port, faults, function, results[rank], output, options)
            pids.append(pid)
        try:
            yield pids
        finally:  # also after a timeout of the test, and for loader workers
            _kill_process_groups(pids)


def read_output(cell: Cell, folder: Path) -> str:
    """Returns the output of all ranks."""
    outputs = [folder / f"output{rank}.txt" for rank in range(cell.ranks)]
    return "".join(file.read_text(errors="replace") for file in outputs if file.exists())


@cache
def train_uninterrupted(cell: Cell) -> Outcome:
    """Returns the outcome of a cell without kills. Trained once."""
    with TemporaryDirectory() as folder:
        outcome = run_attempt(cell, Path(folder))
    assert outcome.results is not None, outcome.output
    return outcome


def kill_repeatedly(cell: Cell, folder: Path, kill_points: Iterable[tuple[str, int]], **options: Any) -> Outcome:
    """Kills one attempt at each of ``kill_points``, then runs an attempt to the end.

    Args:
        cell: Cell to train.
        folder: Folder of the run.
        kill_points: Pairs of a phase and a step, in the order of the run. The ranks are stopped there in turns.
        options: Additional arguments of ``train``.
    """
    for number, (phase, step) in enumerate(kill_points):
        outcome = run_attempt(cell, folder, partial(FaultInjector().stop, phase, step, number % cell.ranks), **options)
        assert outcome.was_killed, f"nothing was killed at {phase!r} of step {step}: {outcome.output}"
    return run_attempt(cell, folder, **options)


def assert_bitwise_equal(first: Outcome, second: Outcome) -> None:
    """Asserts that both outcomes finished with bit-identical results on every rank."""
    assert first.results is not None, first.output
    assert second.results is not None, second.output
    for rank, pair in enumerate(zip(first.results, second.results, strict=True)):
        difference_messages = find_differences(
            *({key: result[key] for key in result if key != "recovery"} for result in pair)
        )
        assert not difference_messages, f"rank {rank}: {difference_messages[:5]}"


def _run_rank(
    rank: int, cell: Cell, folder: Path, port: int, faults: Any, function: Any, result: Path, output: Path, options: Any
) -> None:
    exit_code = 1
    try:
        os.setsid()  # kills loader workers, too
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        sys.stdout, sys.stderr = (
            os.fdopen(1, "w", buffering=1),
            os.fdopen(2, "w", buffering=1),
        )  # not those of pytest
        warnings.resetwarnings()  # pytest raises or captures them
        warnings.showwarning = _print_warning
        if cell.ranks > 1:
            os.environ.update(
                LOCAL_RANK=str(rank), NODE_RANK="0", WORLD_SIZE=str(cell.ranks), MASTER_ADDR="127.0.0.1",
                MASTER_PORT=str(port),
            )  # fmt: skip
        return_value = function(cell, folder, extra=[faults()] if faults else None, **options)
        torch.save(return_value, result)
        exit_code = 0
    except SystemExit as error:
        exit_code = error.code if isinstance(error.code, int) else 1
    except BaseException as error:  # noqa: BLE001 (a child must not return into its parent's stack)
        traceback.print_exc()
        exit_code = getattr(error, "exit_code", 1)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(exit_code)


def _print_warning(message: Warning | str, category: type[Warning], *_: Any) -> None:
    print(f"{category.__name__}: {message}", file=sys.stderr)  # noqa: T201


def _wait_or_kill(pids: list[int], kill_after: float | None) -> tuple[bool, list[int]]:
    """Waits for all ranks. Kills the others if one is stopped or was killed by a signal.

    If a rank exits with an error, the others have ``GRACE_SECONDS`` to exit.
    """
    exit_codes: dict[int, int] = {}
    was_killed = False
    deadline = time.monotonic() + (TIMEOUT_SECONDS if kill_after is None else kill_after)
    while len(exit_codes) < len(pids):
        for pid in set(pids) - set(exit_codes):
            waited_pid, status = os.waitpid(pid, os.WNOHANG | os.WUNTRACED)
            if waited_pid and not os.WIFSTOPPED(status):
                exit_codes[pid] = os.waitstatus_to_exitcode(status)
            is_stopped = bool(waited_pid) and os.WIFSTOPPED(status)
            if is_stopped or exit_codes.get(pid, 0) < 0:
                was_killed = True
                _kill_process_groups(set(pids) - set(exit_codes))
            elif exit_codes.get(pid, 0) > 0:
                deadline = min(deadline, time.monotonic() + GRACE_SECONDS)
        if time.monotonic() > deadline:
            was_killed = True
            _kill_process_groups(set(pids) - set(exit_codes))
        time.sleep(0.002)
    return was_killed, [exit_codes[pid] for pid in pids]


def _kill_process_groups(pids: Iterable[int]) -> None:
    for pid in pids:
        try:
            os.killpg(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
