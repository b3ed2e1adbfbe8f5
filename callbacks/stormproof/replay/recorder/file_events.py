"""Observes opened, renamed and copied files by an audit hook of the interpreter."""

from __future__ import annotations

import os
import sys
from typing import Any

from stormproof.replay.recorder.checkpoint_log import CheckpointLog
from stormproof.replay.recorder.ledger_writer import LedgerWriter

_COPIES = {"os.rename", "shutil.copyfile", "os.link"}
_EVENTS = {"open", *_COPIES}
_TEXT = (".txt", ".log", ".json", ".jsonl", ".csv", ".yaml", ".yml", ".md", ".py", ".pyc")
"""Suffixes of files that are no checkpoints. The event does not distinguish text from bytes."""


def install(log: CheckpointLog, writer: LedgerWriter) -> None:
    """Adds the audit hook. ``os.replace`` is the event ``os.rename``."""
    known = _EVENTS

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if event in known:
            with writer.guard("audit"):
                if event == "open":
                    _on_open(log, *arguments)
                else:
                    source, target = (os.path.realpath(os.fsdecode(path)) for path in arguments[:2])
                    log.on_copy(source, target)

    sys.addaudithook(audit)


def _on_open(log: CheckpointLog, path: Any, mode: str | None, flags: int) -> None:
    if not isinstance(path, str | bytes | os.PathLike):
        return  # a file descriptor
    real_path = os.path.realpath(os.fsdecode(path))
    # `os.open` has no mode. The mode of `open` lacks the letter b.
    is_written = bool(flags & (os.O_WRONLY | os.O_RDWR)) if mode is None else any(letter in mode for letter in "wxa+")
    if not real_path.endswith(_TEXT):
        log.on_open(real_path, "w" if is_written else "r")
