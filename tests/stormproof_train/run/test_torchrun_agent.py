import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from stormproof_train.run.torchrun_agent import terminate_agent
from tests.support.forked_command import ROOT

pytestmark = pytest.mark.slow

WORKER = """
import os, sys, time
sys.path[:0] = {roots!r}
from stormproof_train.run.torchrun_agent import terminate_with_agent

terminate_with_agent({environ!r})
print(os.getpid(), flush=True)
time.sleep(100)
"""
STARTER = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"
ROOTS = [str(ROOT / "src"), str(ROOT / "callbacks")]


@pytest.mark.parametrize(
    ("environ", "outlives"), [({"TORCHELASTIC_RUN_ID": "none"}, sys.platform != "linux"), ({}, True)]
)
def test_what_torchrun_started_ends_with_it_and_nothing_else_does(environ: dict[str, str], outlives: bool):
    command = [sys.executable, "-c", STARTER, WORKER.format(roots=ROOTS, environ=environ)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as starter:
        assert starter.stdout is not None
        worker = psutil.Process(int(starter.stdout.readline()))
        starter.kill()
    try:
        gone, _ = psutil.wait_procs([worker], timeout=2 if outlives else 60)
        assert bool(gone) != outlives
    finally:
        if worker.is_running():
            worker.kill()


AGENT = """
import os, sys, time
sys.path[:0] = {roots!r}
from stormproof_train.run.torchrun_agent import terminate_agent

open({started!r}, "a").write("x")
terminate_agent()
time.sleep(60)  # until the agent, which is ending, kills this
"""


def test_torchrun_starts_nothing_again_that_says_so(tmp_path: Path):
    started, script = tmp_path / "started", tmp_path / "worker.py"
    script.write_text(AGENT.format(roots=ROOTS, started=str(started)))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--max-restarts=5", str(script)]
    result = subprocess.run(launch, capture_output=True, timeout=100, check=False)
    assert result.returncode != 0
    assert started.read_text() == "x"


def test_without_torchrun_nobody_is_ended(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "set by another launcher")
    monkeypatch.setattr("psutil.Process.cmdline", lambda process: ["bash"])
    monkeypatch.setattr("psutil.Process.terminate", lambda process: pytest.fail("it ended its parent"))
    terminate_agent()
