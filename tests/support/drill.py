"""Attempts at a training, each a fork of this process, killed by it.

Importing torch and Lightning takes seconds and a fork milliseconds: with one import, hundreds of attempts fit.
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
from tests.support.difference import differences
from tests.support.training import Cell, train

FOREVER, GRACE = 120.0, 20.0  # seconds


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended: the result of rank 0, or None where it was killed."""

    killed: bool
    exit_codes: tuple[int, ...]
    results: list[dict[str, Any]] | None
    output: str


def attempt(
    cell: Cell,
    folder: Path,
    faults: Callable[[], Any] | None = None,
    kill_after: float | None = None,
    function: Callable[..., Any] = train,
    **options: Any,
) -> Outcome:
    """Forks one process a rank, and kills all of them once one stands still or ``kill_after`` seconds are over.

    Args:
        cell: what to train.
        folder: where it goes on.
        faults: called in each rank; gives the callback that stops it.
        kill_after: seconds.
        function: trains.
        options: further arguments of it.
    """
    with ranks(cell, folder, faults, function, **options) as pids:
        killed, codes = _wait_or_kill(pids, kill_after)
    done = all(code == 0 for code in codes)
    results = [folder / f"result{rank}.pt" for rank in range(cell.ranks)]
    return Outcome(
        killed,
        tuple(codes),
        [torch.load(file, weights_only=False) for file in results] if done else None,
        said(cell, folder),
    )


@contextmanager
def ranks(
    cell: Cell,
    folder: Path,
    faults: Callable[[], Any] | None = None,
    function: Callable[..., Any] = train,
    **options: Any,
) -> Iterator[list[int]]:
    """Forks one process a rank, gives their numbers, and kills what is left of them in the end.

    Each ends with the code of its function; ``result<rank>.pt`` and ``output<rank>.txt`` are what it returned and said.
    """
    folder.mkdir(exist_ok=True, parents=True)
    port = get_free_port()
    results = [folder / f"result{rank}.pt" for rank in range(cell.ranks)]
    for file in results:
        file.unlink(missing_ok=True)
    pids = []
    with TemporaryDirectory() as scratch:  # what is killed cannot clear up its own
        for rank in range(cell.ranks):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 on: pytest-xdist has a thread
                pid = os.fork()
            if pid == 0:
                tempfile.tempdir = scratch
                output = folder / f"output{rank}.txt"
                _child(rank, cell, folder, port, faults, function, results[rank], output, options)
            pids.append(pid)
        try:
            yield pids
        finally:  # a test that is given up leaves nobody behind, and an attempt that ended no loader worker
            _kill(pids)


def said(cell: Cell, folder: Path) -> str:
    """What all ranks printed."""
    outputs = [folder / f"output{rank}.txt" for rank in range(cell.ranks)]
    return "".join(file.read_text(errors="replace") for file in outputs if file.exists())


@cache
def uninterrupted(cell: Cell) -> Outcome:
    """How a cell ends that nobody kills; trained once."""
    with TemporaryDirectory() as folder:
        done = attempt(cell, Path(folder))
    assert done.results is not None, done.output
    return done


def kill_in_turn(cell: Cell, folder: Path, aims: Iterable[tuple[str, int]], **options: Any) -> Outcome:
    """Kills a training at each of ``aims``, attempt after attempt, and lets the last one end.

    Args:
        cell: what to train.
        folder: of the run.
        aims: a phase and a step each, in the order in which a training comes by them; the ranks stop there in turn.
        options: further arguments of ``train``.
    """
    for number, (phase, step) in enumerate(aims):
        killed = attempt(cell, folder, partial(FaultInjector().stop, phase, step, number % cell.ranks), **options)
        assert killed.killed, f"nothing was killed at {phase!r} of step {step}: {killed.output}"
    return attempt(cell, folder, **options)


def assert_same(one: Outcome, other: Outcome) -> None:
    """Both finished, with the same bits on every rank."""
    assert one.results is not None, one.output
    assert other.results is not None, other.output
    for rank, pair in enumerate(zip(one.results, other.results, strict=True)):
        found = differences(*({key: result[key] for key in result if key != "recovery"} for result in pair))
        assert not found, f"rank {rank}: {found[:5]}"


def _child(
    rank: int, cell: Cell, folder: Path, port: int, faults: Any, function: Any, result: Path, output: Path, options: Any
) -> None:
    code = 1
    try:
        os.setsid()  # loader workers go with it
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)  # pytest has its own
        warnings.resetwarnings()  # pytest makes errors of them, or keeps them to itself
        warnings.showwarning = _say
        if cell.ranks > 1:
            os.environ.update(
                LOCAL_RANK=str(rank), NODE_RANK="0", WORLD_SIZE=str(cell.ranks), MASTER_ADDR="127.0.0.1",
                MASTER_PORT=str(port),
            )  # fmt: skip
        done = function(cell, folder, extra=[faults()] if faults else None, **options)
        torch.save(done, result)
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException as error:  # noqa: BLE001 (a child must not return into its parent's stack)
        traceback.print_exc()
        code = getattr(error, "exit_code", 1)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _say(message: Warning | str, category: type[Warning], *_: Any) -> None:
    print(f"{category.__name__}: {message}", file=sys.stderr)  # noqa: T201


def _wait_or_kill(pids: list[int], kill_after: float | None) -> tuple[bool, list[int]]:
    """Waits for all; one that stands still, or has died of a signal, takes the others along.

    One that has left with an error gives them time to do so too.
    """
    codes: dict[int, int] = {}
    killed = False
    end = time.monotonic() + (FOREVER if kill_after is None else kill_after)
    while len(codes) < len(pids):
        for pid in set(pids) - set(codes):
            seen, status = os.waitpid(pid, os.WNOHANG | os.WUNTRACED)
            if seen and not os.WIFSTOPPED(status):
                codes[pid] = os.waitstatus_to_exitcode(status)
            stands = bool(seen) and os.WIFSTOPPED(status)
            if stands or codes.get(pid, 0) < 0:
                killed = True
                _kill(set(pids) - set(codes))
            elif codes.get(pid, 0) > 0:
                end = min(end, time.monotonic() + GRACE)
        if time.monotonic() > end:
            killed = True
            _kill(set(pids) - set(codes))
        time.sleep(0.002)
    return killed, [codes[pid] for pid in pids]


def _kill(pids: Iterable[int]) -> None:
    for pid in pids:
        try:
            os.killpg(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
