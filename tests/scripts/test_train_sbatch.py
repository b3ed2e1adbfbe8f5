"""``scripts/slurm/train.sbatch`` with stand-ins for SLURM's commands; with real ones: ``tests/cluster``."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.support.forked_command import ROOT

JOB = {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "2", "SLURM_NTASKS_PER_NODE": "4"}
ELEMENT = {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "3"}


@pytest.fixture
def job(tmp_path: Path):
    """Runs the script as a job whose step ends with a code; gives its own code and what it called."""
    for name, script in (("srun", 'echo "$SRUN_CPUS_PER_TASK" > cpus; exit $CODE'), ("scontrol", "true")):
        (tmp_path / name).write_text(f'#!/bin/sh\necho {name} "$@" >> called\n{script}\n')
        (tmp_path / name).chmod(0o755)

    def run(code: int, *arguments: str, **env: str) -> tuple[int, list[str]]:
        path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
        result = subprocess.run(
            ["bash", str(ROOT / "scripts/slurm/train.sbatch"), *arguments],
            cwd=tmp_path, env={**os.environ, **JOB, **env, "PATH": path, "CODE": str(code)}, check=False, timeout=20,
        )  # fmt: skip
        return result.returncode, (tmp_path / "called").read_text().splitlines()

    return run


@pytest.mark.parametrize("code", [75, 78, 134, 135, 137, 138, 139, 140, 143])
def test_a_job_that_was_told_to_end_or_hung_or_was_killed_is_requeued_as_the_last_thing(job, code: int):
    _, called = job(code)
    assert called[-1] == "scontrol requeue 7"


@pytest.mark.parametrize("code", [0, 1, 2, 74, 76, 77, 130])
def test_any_other_end_is_the_end_of_the_job_and_its_code(job, code: int):
    status, called = job(code)
    assert status == code
    assert len(called) == 1


def test_an_element_of_an_array_has_its_seed_and_is_requeued_alone(job):
    # `scontrol requeue 7` would start all elements again
    _, called = job(75, "activation=elu", **ELEMENT)
    assert called[0].endswith(" trainer.num_nodes=2 trainer.devices=4 seed=3 activation=elu")
    assert called[-1] == "scontrol requeue 7_3"


def test_the_words_of_the_user_come_last_and_whole(job):
    _, called = job(0, "seed=9", "data.separator=' '", **ELEMENT)
    assert called[0].endswith(" seed=3 seed=9 data.separator=' '")


def test_each_rank_gets_the_cores_that_sbatch_was_asked_for(job, tmp_path: Path):
    job(0, SLURM_CPUS_PER_TASK="8")
    assert (tmp_path / "cpus").read_text() == "8\n"
    job(0)
    assert (tmp_path / "cpus").read_text() == "\n"
