"""A run as a process of its own."""

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import os, signal, sys, threading, time
from multiprocessing import forkserver
from pathlib import Path
from stormproof_train.search import trial_process

trial_process._start_forkserver()
server = forkserver._forkserver._forkserver_pid
os.kill(server, signal.SIGSTOP)  # so that it is asked for a run, and does not answer
threading.Timer(1, os.kill, (server, signal.SIGKILL)).start()
for name in ("first.log", "second.log"):
    process = trial_process.TrialProcess(["model=nonsense"], Path(name), is_distributed=False)
    while process.is_running():
        time.sleep(0.01)
    print(process.exit_code, process.last_message())
"""


@pytest.mark.slow
def test_what_runs_are_forked_from_may_be_killed_while_one_starts(tmp_path: Path):
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 0, result.stderr
    started_line, *ends = result.stdout.splitlines()
    assert started_line == "the fork server was killed: first starts in a new interpreter instead, a few seconds later"
    assert len(ends) == 2
    assert all(end.startswith("2 model=nonsense does not exist") for end in ends), ends
