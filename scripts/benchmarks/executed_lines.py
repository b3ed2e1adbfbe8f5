"""Records which lines of the packages each test executes, in all processes that the test starts. Python 3.12 or later.

A pytest plugin: ``pytest -p executed_lines``; ``mutation.py record`` runs it. Every process appends JSON records
``{"test": …, "lines": {file: [numbers]}}`` to its own file in the folder ``EXECUTED_LINES``. A child process reads the
name of the test from the environment variable ``EXECUTED_LINES_TEST``. Child processes with an empty environment, and
processes killed by SIGKILL, leave no record.

PYTEST_DONT_REWRITE: a .pth file imports this module before pytest starts.
"""

from __future__ import annotations

import atexit
import json
import os
import sys
from collections import defaultdict
from pathlib import Path
from types import CodeType
from typing import Any

FOLDER, TEST, ROOT = "EXECUTED_LINES", "EXECUTED_LINES_TEST", "EXECUTED_LINES_ROOT"
TOOL = 4  # one of the ids that sys.monitoring reserves for no particular tool

_lines: dict[str, set[int]] = defaultdict(set)
_root = os.environ.get(ROOT, "")
_exit = os._exit


def _on_line(code: CodeType, line: int) -> Any:
    if code.co_filename.startswith(_root):
        _lines[code.co_filename[len(_root) :]].add(line)
    return sys.monitoring.DISABLE  # until `_forget`: each line is reported once per test


def _forget() -> None:
    _lines.clear()
    sys.monitoring.restart_events()


def _write() -> None:
    lines = {file: sorted(numbers) for file, numbers in _lines.items() if file.startswith(("src/", "callbacks/"))}
    if lines:
        with Path(os.environ[FOLDER], f"{os.getpid()}.jsonl").open("a") as file:
            file.write(json.dumps({"test": os.environ.get(TEST, ""), "lines": lines}) + "\n")


def _stop() -> None:
    _write()
    sys.monitoring.set_events(TOOL, 0)  # stop before interpreter shutdown clears module globals


def _write_and_exit(status: int) -> None:
    _write()
    _exit(status)


def start() -> None:
    """Starts recording in this process and its forked children."""
    if FOLDER not in os.environ or sys.monitoring.get_tool(TOOL):
        return
    sys.monitoring.use_tool_id(TOOL, "executed_lines")
    sys.monitoring.register_callback(TOOL, sys.monitoring.events.LINE, _on_line)
    sys.monitoring.set_events(TOOL, sys.monitoring.events.LINE)
    os.register_at_fork(after_in_child=_forget)
    atexit.register(_stop)
    os._exit = _write_and_exit


def pytest_runtest_logstart(nodeid: str) -> None:
    os.environ[TEST] = nodeid
    _forget()


def pytest_runtest_logfinish() -> None:
    _write()
    _forget()


start()
