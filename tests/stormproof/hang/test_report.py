from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from traceback import FrameSummary
from typing import Any

import pytest

from stormproof.hang.report import last_collectives, pending, report, stack_of, where_it_stands

TORCH = "/lib/python3.11/site-packages/torch"
HERE = FrameSummary("/home/me/mine.py", 7, "forward")


def stack(*files: str) -> list[FrameSummary]:
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
    assert where_it_stands(stack(*files)).startswith(expected)


def test_a_thread_that_has_ended_stands_nowhere():
    assert where_it_stands([]) == "the thread that trains has ended"
    assert stack_of(-1) == []


def test_a_collective_that_has_not_completed_is_named():
    assert where_it_stands(stack(), "nccl:all_gather").endswith("with nccl:all_gather not completed")


def collective(name: str, state: str, retired: bool) -> dict[str, Any]:
    return {
        "profiling_name": name, "state": state, "retired": retired, "collective_seq_id": 3, "input_sizes": [[10]],
        "process_group": ["0", "default_pg"], "time_created_ns": time.time_ns() - int(5e9),
    }  # fmt: skip


def test_pending_is_the_oldest_that_has_not_completed():
    done, retired = collective("a", "completed", False), collective("b", "scheduled", True)
    assert pending([done, retired]) is None
    assert pending([done, collective("c", "started", False), collective("d", "scheduled", False)]) == "c"
    assert pending(None) is None


@pytest.fixture
def waiting() -> Iterator[threading.Thread]:
    done = threading.Event()
    thread = threading.Thread(target=done.wait, name="waits-for-ever")
    thread.start()
    yield thread
    done.set()
    thread.join()


def test_a_report_has_the_stacks_of_all_threads_and_the_collectives(waiting: threading.Thread):
    text = report(threading.get_ident(), [collective("nccl:all_gather", "started", False)])
    assert "the thread that trains (MainThread)" in text
    assert "test_a_report_has_the_stacks" in text
    assert "thread waits-for-ever:" in text
    assert "  nccl:all_gather, number 3 of group default_pg, of sizes [[10]]: begun 5 s ago, NOT completed" in text


def test_without_a_process_group_there_are_no_collectives():
    collectives = last_collectives()
    assert collectives == []
    text = report(threading.get_ident(), collectives)
    assert "the newest first" not in text


def test_a_flight_recorder_that_does_not_answer_is_not_waited_for(monkeypatch: pytest.MonkeyPatch):
    done = threading.Event()
    monkeypatch.setattr("stormproof.hang.report.RECORDER_SECONDS", 0.05)
    monkeypatch.setattr("stormproof.hang.report._recorded", done.wait)
    assert last_collectives() is None
    assert "torch's flight recorder does not answer" in report(threading.get_ident(), None)
    done.set()
