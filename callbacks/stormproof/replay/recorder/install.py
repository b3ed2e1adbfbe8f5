"""Installs the recorder in this process."""

from __future__ import annotations

import atexit
import os
import sys
import time
from pathlib import Path
from types import TracebackType

import torch
from torch.amp.grad_scaler import GradScaler
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from stormproof.replay.ledger import EVERY_VARIABLE, FOLDER_VARIABLE, ROOT_VARIABLE
from stormproof.replay.recorder import checkpoints, file_events, losses
from stormproof.replay.recorder.checkpoint_log import CheckpointLog
from stormproof.replay.recorder.checkpoints import CallAfterImport
from stormproof.replay.recorder.ledger_writer import LedgerWriter
from stormproof.replay.recorder.session import Session
from stormproof.replay.recorder.steps import StepLog


def install(started_ns: int, call_after_import: CallAfterImport) -> None:
    """Installs all hooks.

    Args:
        started_ns: Unix time at the start of the process, in nanoseconds.
        call_after_import: Calls a function with a module after its import.
    """
    root = os.path.realpath(os.environ.get(ROOT_VARIABLE) or Path.cwd())
    every = max(1, int(os.environ.get(EVERY_VARIABLE) or 1))
    writer = LedgerWriter(Path(os.environ[FOLDER_VARIABLE]).absolute(), root, every, started_ns)
    session = Session(writer, root, every)
    checkpoint_log = CheckpointLog(session)

    session.modules.watch(torch.nn.Module, "__init__", "__setstate__")
    session.optimizers.watch(torch.optim.Optimizer, "__init__")
    session.schedulers.watch(LRScheduler, "__init__")
    session.schedulers.watch(ReduceLROnPlateau, "__init__")
    session.scalers.watch(GradScaler, "__init__")
    losses.install(session)
    checkpoints.install(checkpoint_log, call_after_import)
    file_events.install(checkpoint_log, writer)
    StepLog(session, checkpoint_log).install(call_after_import)
    _watch_exit(session, checkpoint_log)


def _watch_exit(session: Session, checkpoint_log: CheckpointLog) -> None:
    """Writes the end of the process, if it has a ledger."""
    exit_code: list[int] = []
    original = sys.excepthook

    def excepthook(exception_type: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        exit_code.append(1)
        original(exception_type, error, traceback)

    def write_end() -> None:
        with session.writer.guard("exit"):
            checkpoint_log.finish()
            if session.writer.is_open:
                code = exit_code[0] if exit_code else None
                session.writer.write("end", exit=code, steps=session.steps, time=time.time())

    sys.excepthook = excepthook
    atexit.register(write_end)
