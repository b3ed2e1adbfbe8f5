"""Ledgers of processes with errors."""

import os
import warnings
from pathlib import Path

from stormproof.replay.ledger import read_ledger
from stormproof.replay.recorder.ledger_writer import LedgerWriter


def test_repeated_errors_become_a_few_events(tmp_path: Path) -> None:
    writer = LedgerWriter(tmp_path / "ledgers", str(tmp_path), 1, 5)
    for _ in range(10):
        with writer.guard("hook"):
            raise ValueError("broken")

    (path,) = (tmp_path / "ledgers").iterdir()
    ledger = read_ledger(path)

    assert path.name == f"5-{os.getpid()}.jsonl"
    assert ledger is not None
    assert len(ledger.errors) == 3
    assert ledger.errors[0].where == "hook"
    assert ledger.errors[0].message.startswith("ValueError: broken (test_ledger_writer.py:")


def test_folder_that_cannot_be_written_is_ignored(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    writer = LedgerWriter(tmp_path / "file" / "ledgers", str(tmp_path), 1, 5)

    writer.write("load", path="a")

    assert (tmp_path / "file").read_bytes() == b""


def test_fork_writes_its_own_ledger(tmp_path: Path) -> None:
    writer = LedgerWriter(tmp_path / "ledgers", str(tmp_path), 1, 5)
    writer.write("validation", after_step=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12: pytest-xdist has a thread
        pid = os.fork()
    if pid == 0:
        writer.write("validation", after_step=2)
        os._exit(0)
    os.waitpid(pid, 0)

    ledgers = [read_ledger(path) for path in (tmp_path / "ledgers").iterdir()]
    assert sorted((ledger.start.pid, ledger.validations) for ledger in ledgers if ledger) == sorted(
        [(os.getpid(), (1,)), (pid, (2,))]
    )
