import subprocess
import sys

import psutil
import pytest
from conftest import ROOT

WORKER = """
import os, sys, time
sys.path[:0] = {roots!r}
from stormproof_train.orphaned import end_with_torchrun

end_with_torchrun({environ!r})
print(os.getpid(), flush=True)
time.sleep(100)
"""
STARTER = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]])"
ROOTS = [str(ROOT / "src"), str(ROOT / "callbacks")]


@pytest.mark.skipif(sys.platform != "linux", reason="no other system tells of it")
@pytest.mark.parametrize(("environ", "outlives"), [({"TORCHELASTIC_RUN_ID": "none"}, False), ({}, True)])
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
