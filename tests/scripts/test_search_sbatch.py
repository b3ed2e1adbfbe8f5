"""``scripts/slurm/search.sbatch`` with stand-ins for ``python`` and ``scontrol``; with real ones: ``tests/cluster``."""

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support.forked_command import ROOT

ELEMENT = {"SLURM_JOB_ID": "9", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "3"}
WORKER = """#!/bin/bash
printf '%s\\n' "$SLURM_JOB_NAME" "$@" > called
trap 'echo USR1 >> heard; exit 75' USR1
trap 'echo TERM >> heard; exit 75' TERM
echo begun
[ -n "$CODE" ] && exit "$CODE"
while true; do sleep 0.01; done
"""


@pytest.fixture
def job(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts the script as an element of an array whose worker ends with a code, or waits for a signal without one."""
    for name, content in (("python", WORKER), ("scontrol", '#!/bin/sh\necho "$@" > requeued\n')):
        (tmp_path / name).write_text(content)
        (tmp_path / name).chmod(0o755)

    def start(code: int | None, *arguments: str) -> subprocess.Popen[str]:
        path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
        env = {**os.environ, **ELEMENT, "SLURM_JOB_NAME": "stormproof-search", "PATH": path}
        env |= {"CODE": "" if code is None else str(code)}
        command = ["bash", str(ROOT / "scripts/slurm/search.sbatch"), *arguments]
        processes.append(
            subprocess.Popen(command, cwd=tmp_path, env=env, stdout=subprocess.PIPE, text=True, start_new_session=True)
        )
        return processes[-1]

    processes: list[subprocess.Popen[str]] = []
    yield start
    for process in processes:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def wait_until_stopped(started: subprocess.Popen[str], number: signal.Signals) -> int:
    assert started.stdout is not None
    assert started.stdout.readline() == "begun\n"
    started.send_signal(number)
    started.communicate(timeout=20)
    return started.returncode


@pytest.mark.parametrize("code", [75, 78, 134, 135, 137, 138, 139, 140, 143])
def test_an_element_whose_worker_was_told_to_end_or_was_killed_is_requeued_alone(job, code: int, tmp_path: Path):
    job(code).communicate(timeout=20)
    assert (tmp_path / "requeued").read_text() == "requeue 7_3\n"


@pytest.mark.parametrize("code", [0, 1, 2, 74])
def test_any_other_end_is_the_end_of_the_element_and_its_code(job, code: int, tmp_path: Path):
    with job(code) as started:
        started.communicate(timeout=20)
    assert started.returncode == code
    assert not (tmp_path / "requeued").exists()


def test_the_words_go_to_the_search_whole_and_it_is_in_no_step_of_srun(job, tmp_path: Path):
    job(0, "optimizer.lr=tag(log,interval(1e-4,1e-1))", "data.separator=' '").communicate(timeout=20)
    called = ["interactive", "train.py", "search", "optimizer.lr=tag(log,interval(1e-4,1e-1))", "data.separator=' '"]
    assert (tmp_path / "called").read_text().splitlines() == called


def test_the_signal_ahead_of_the_end_reaches_the_worker_which_is_waited_for_and_requeued(job, tmp_path: Path):
    wait_until_stopped(job(None), signal.SIGUSR1)
    assert (tmp_path / "heard").read_text() == "USR1\n"
    assert (tmp_path / "requeued").read_text() == "requeue 7_3\n"


def test_an_element_that_is_cancelled_waits_for_its_worker_and_stays_cancelled(job, tmp_path: Path):
    assert wait_until_stopped(job(None), signal.SIGTERM) != 0
    assert (tmp_path / "heard").read_text() == "TERM\n"
    assert not (tmp_path / "requeued").exists()
