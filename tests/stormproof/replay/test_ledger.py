"""Reading ledgers."""

import json
from pathlib import Path

import pytest

from stormproof.replay.ledger import Load, ProcessEnd, RecorderError, Save, Step, read_ledger, read_ledgers

START = {
    "event": "start", "version": 1, "pid": 1, "rank": 0, "world_size": 1, "argv": ["train.py"], "time": 10.0,
    "hash": "xxh3_64", "root": "/run", "every": 1, "packages": {},
}  # fmt: skip


def write_ledger(path: Path, *events: dict, tail: str = "") -> Path:
    path.write_text("".join(f"{json.dumps(event)}\n" for event in events) + tail)
    return path


def test_ledger_of_a_killed_process_has_all_complete_lines(tmp_path: Path) -> None:
    step = {
        "event": "step", "n": 1, "optimizer": 0, "time": 11.0, "hashed": True,
        "components": {"loss": "0.5", "variables/main.epoch": "a" * 16}, "values": {"main.epoch": "3"},
        "batches": ["b" * 16], "indices": ["c" * 16],
    }  # fmt: skip
    path = write_ledger(
        tmp_path / "1-1.jsonl",
        START,
        {"event": "load", "path": "/run/a.pt", "after_step": 0, "time": 10.5},
        {"event": "packages", "rank": 1, "world_size": 2, "packages": {"torch": "2.13.0"}},
        step,
        {"event": "from a later version"},
        {"event": "save", "path": "/run/b.pt", "phase": "replace", "from": "/run/b.tmp", "after_step": 1, "time": 12.0},
        tail='{"event": "step", "n',
    )

    ledger = read_ledger(path)

    assert ledger is not None
    assert (ledger.start.rank, ledger.start.world_size, ledger.start.packages) == (1, 2, {"torch": "2.13.0"})
    values = {"variables/main.epoch": "3"}
    assert ledger.steps == (Step(1, 0, 11.0, True, step["components"], values, ("b" * 16,), ("c" * 16,)),)
    assert ledger.loads == (Load("/run/a.pt", 0, 10.5),)
    assert ledger.saves == (Save("/run/b.pt", "replace", 1, 12.0, "/run/b.tmp"),)
    assert ledger.end is None


def test_invalid_line_becomes_an_error(tmp_path: Path) -> None:
    end = {"event": "end", "exit": None, "steps": 0, "time": 12.0}
    path = write_ledger(tmp_path / "1-1.jsonl", START, tail=f"%\n{json.dumps(end)}\n")

    ledger = read_ledger(path)

    assert ledger is not None
    assert ledger.end == ProcessEnd(None, 0, 12.0)
    assert ledger.errors == (RecorderError("line 2", "ValueError: Expecting value: line 1 column 1 (char 0)"),)


def test_processes_are_sorted_by_rank_and_start(tmp_path: Path) -> None:
    write_ledger(tmp_path / "1-3.jsonl", START | {"rank": 1})
    write_ledger(tmp_path / "2-1.jsonl", START | {"pid": 7, "time": 30.0})
    write_ledger(tmp_path / "3-2.jsonl", START | {"pid": 8, "time": 20.0})
    write_ledger(tmp_path / "4-9.jsonl", tail='{"event"')

    ledgers = read_ledgers(tmp_path)

    assert {rank: [ledger.path.name for ledger in processes] for rank, processes in ledgers.items()} == {
        0: ["3-2.jsonl", "2-1.jsonl"],
        1: ["1-3.jsonl"],
    }
    assert read_ledgers(tmp_path / "missing") == {}


def test_other_version_is_rejected(tmp_path: Path) -> None:
    path = write_ledger(tmp_path / "1-1.jsonl", START | {"version": 2})

    with pytest.raises(ValueError, match="is not a ledger of version 1"):
        read_ledger(path)
