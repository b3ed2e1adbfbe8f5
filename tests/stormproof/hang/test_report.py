from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from traceback import FrameSummary
from typing import Any

import pytest

from stormproof.hang.report import describe_wait, format_report, last_collectives, pending_collective, thread_stack

TORCH = "/lib/python3.11/site-packages/torch"
HERE = FrameSummary("/home/me/mine.py", 7, "forward")


def make_stack(*files: str) -> list[FrameSummary]:
    return [HERE, *(FrameSummary(file, 12, "called") for file in files)]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ([], "in forward (/home/me/mine.py:7)"),
        ([f"{TORCH}/distributed/distributed_c10d.py"], "in a collective, in called ("),
        ([f"{TORCH}/autograd/graph.py"], "in backward, in called ("),
        (
            [f"{TORCH}/utils/data/dataloader.py", "/lib/queue.py", "/lib/threading.py"],
            "waiting for the data loader, in ",
        ),
        (
            [f"{TORCH}/utils/data/_utils/fetch.py", "/mine.py", "/threading.py"],
            "waiting for the data loader, in called",
        ),
        ([f"{TORCH}/autograd/graph.py", f"{TORCH}/distributed/x.py"], "in a collective, "),  # a hook of the backward
        (["C:\\torch\\distributed\\x.py"], "in a collective, "),
    ],
)
def test_the_kind_of_a_wait_is_told_by_the_innermost_that_is_known(files: list[str], expected: str):
    assert describe_wait(make_stack(*files)).startswith(expected)


def test_a_thread_that_has_ended_stands_nowhere():
    assert describe_wait([]) == "the training thread has ended"
    assert thread_stack(-1) == []


def test_a_collective_that_has_not_completed_is_named():
    assert describe_wait(make_stack(), "nccl:all_gather").endswith(", nccl:all_gather not completed")


def make_collective(name: str, state: str, retired: bool) -> dict[str, Any]:
    return {
        "profiling_name": name, "state": state, "retired": retired, "collective_seq_id": 3, "input_sizes": [[10]],
        "process_group": ["0", "default_pg"], "time_created_ns": time.time_ns() - int(5e9),
    }  # fmt: skip


def test_pending_is_the_oldest_that_has_not_completed():
    completed_work, retired = make_collective("a", "completed", False), make_collective("b", "scheduled", True)
    assert pending_collective([completed_work, retired]) is None
    assert (
        pending_collective(
            [completed_work, make_collective("c", "started", False), make_collective("d", "scheduled", False)]
        )
        == "c"
    )
    assert pending_collective(None) is None


@pytest.fixture
def waiting() -> Iterator[threading.Thread]:
    finished = threading.Event()
    thread = threading.Thread(target=finished.wait, name="waits-for-ever")
    thread.start()
    yield thread
    finished.set()
    thread.join()


def test_a_report_has_the_stacks_of_all_threads_and_the_collectives(waiting: threading.Thread):
    text = format_report(threading.get_ident(), [make_collective("nccl:all_gather", "started", False)])
    assert "training thread (MainThread)" in text
    assert "test_a_report_has_the_stacks" in text
    assert "thread waits-for-ever:" in text
    assert "  nccl:all_gather, number 3 in group default_pg, sizes [[10]]: started 5 s ago, NOT completed" in text


def test_without_a_process_group_there_are_no_collectives():
    collectives = last_collectives()
    assert collectives == []
    text = format_report(threading.get_ident(), collectives)
    assert "newest first" not in text


def test_a_flight_recorder_that_does_not_answer_is_not_waited_for(monkeypatch: pytest.MonkeyPatch):
    finished = threading.Event()
    monkeypatch.setattr("stormproof.hang.report.FLIGHT_RECORDER_TIMEOUT", 0.05)
    monkeypatch.setattr("stormproof.hang.report._dump_flight_recorder", finished.wait)
    assert last_collectives() is None
    assert "torch's flight recorder did not answer" in format_report(threading.get_ident(), None)
    finished.set()
