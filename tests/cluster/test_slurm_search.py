"""A search as an array of a real SLURM: elements are killed, told to end and cancelled, and no trial is lost."""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.slurm import Cluster, poll, run_cluster
from tests.support.forked_command import ROOT

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(400)]

SCRIPT = str(ROOT / "scripts" / "slurm" / "search.sbatch")
TRIALS = 8
WORDS = (
    "activation=relu,elu", "optimizer.lr=tag(log,interval(1e-4,1e-1))", "trainer.max_epochs=9", "trainer=cpu",
    "logger=none", "callbacks.slow._target_=mine.Slow", "callbacks.recovery.every_n_train_steps=7",
    f"search.trials={TRIALS}",
    "search.rungs=1", "search.final_seeds=2", "search.name=mine",
)  # fmt: skip
TWO_RANKS = ("trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu", "search.trials=2", "search.final_seeds=0")
MINE = """
import time
from pathlib import Path
from pytorch_lightning import Callback

class Slow(Callback):
    def on_train_batch_start(self, *args):
        if not Path(__file__).with_name("fast").exists():  # created by a test after its event
            time.sleep(0.05)
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Two nodes for all tests of this process."""
    with run_cluster() as started:
        yield started


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """Where jobs are submitted."""
    (tmp_path / "train.py").symlink_to(ROOT / "train.py")
    (tmp_path / "mine.py").write_text(MINE)
    return tmp_path


def wait_until_both_train(cluster: Cluster, here: Path) -> str:
    """Submits an array of two, and waits until each has begun a trial."""
    job = cluster.submit("--array=0-1", "--output=%x-%A_%a.out", "--time=10", SCRIPT, *WORDS, cwd=here)
    poll(lambda: len(array_task_ids(here)) == 2, "both have begun a trial", 150)
    return job


def element_states(cluster: Cluster, job: str) -> dict[str, str]:
    """The state of each, by its number in the array."""
    rows = cluster.run_command("squeue", "-h", "--states=all", "--array", "-o", "%K %T", "-j", job).splitlines()
    return dict(line.split() for line in rows)


def read_attempts(here: Path) -> list[dict[str, Any]]:
    """Of all trials that have begun to train."""
    files = (here / "searches" / "mine" / "trials").glob("*/run.json")
    attempt_records = [attempt for file in files for attempt in json.loads(file.read_text())["attempts"]]
    return [attempt for attempt in attempt_records if attempt["first_step"] is not None]


def array_task_ids(here: Path) -> set[str]:
    """The elements that have begun to train a trial."""
    return {attempt["jobs"]["SLURM_ARRAY_TASK_ID"] for attempt in read_attempts(here)}


def preempted_attempts(here: Path) -> list[dict[str, Any]]:
    """Those that have saved and left when their worker was to end, and not because they wait at a rung."""
    return [
        attempt for attempt in read_attempts(here) if attempt.get("preempted") and "stopped by" in attempt["reason"]
    ]


def assert_all_trials_complete(here: Path, trials: int = TRIALS) -> None:
    search = here / "searches" / "mine"
    answer = json.loads((search / "answer.json").read_text())
    assert answer["finished"]
    assert [entry["number"] for entry in answer["trials"]] == list(range(trials))
    assert {entry["state"] for entry in answer["trials"]} == {"complete", "pruned"}
    assert len(list((search / "trials").iterdir())) == trials
    for file in (search / "trials").glob("*/run.json"):
        trained_attempts = [
            entry for entry in json.loads(file.read_text())["attempts"] if entry["first_step"] is not None
        ]
        assert all(0 <= b["last_step"] - a["first_step"] <= 7 for b, a in itertools.pairwise(trained_attempts))


def test_an_element_is_killed_for_good_and_the_other_does_its_trials_too(cluster: Cluster, here: Path):
    job = wait_until_both_train(cluster, here)
    cluster.run_command("scancel", "--signal=KILL", "--full", f"{job}_1")
    poll(lambda: element_states(cluster, job)["1"] not in {"RUNNING", "COMPLETING"}, "the second one is gone")
    assert element_states(cluster, job)["0"] == "RUNNING"
    (here / "fast").touch()
    poll(lambda: element_states(cluster, job)["0"] == "COMPLETED", "the first one has finished", 200)
    assert_all_trials_complete(here)


def read_log(here: Path, job: str, element: int) -> str:
    return (here / f"stormproof-search-{job}_{element}.out").read_text()


def test_an_element_whose_time_is_nearly_up_saves_its_trial_and_is_requeued(cluster: Cluster, here: Path):
    job = wait_until_both_train(cluster, here)
    cluster.run_command("scancel", "--signal=USR1", "--batch", f"{job}_1")
    poll(
        lambda: "stopped by SIGUSR1; the same command resumes the search" in read_log(here, job, 1),
        "it has been told to end",
    )
    assert preempted_attempts(here)
    (here / "fast").touch()
    poll(lambda: set(element_states(cluster, job).values()) == {"COMPLETED"}, "both have finished", 200)
    assert_all_trials_complete(here)
    assert any(attempt["jobs"].get("SLURM_RESTART_COUNT") == "1" for attempt in read_attempts(here))


def test_an_element_that_is_cancelled_saves_its_trial_and_stays_cancelled(cluster: Cluster, here: Path):
    job = wait_until_both_train(cluster, here)
    cluster.run_command("scancel", f"{job}_0")
    poll(lambda: element_states(cluster, job)["0"] == "CANCELLED", "the first one is gone")
    assert "stopped by SIGTERM" in read_log(here, job, 0)
    assert preempted_attempts(here)
    (here / "fast").touch()
    poll(lambda: element_states(cluster, job)["1"] == "COMPLETED", "the second one has finished", 200)
    assert_all_trials_complete(here)


def test_a_trial_of_an_element_starts_its_ranks_itself(cluster: Cluster, here: Path):
    (here / "fast").touch()
    job = cluster.submit("--array=0", "--ntasks=2", "--time=5", SCRIPT, *WORDS, *TWO_RANKS, cwd=here)
    poll(lambda: element_states(cluster, job)["0"] == "COMPLETED", "it has finished", 200)
    assert {attempt["ranks"] for attempt in read_attempts(here)} == {2}
    assert_all_trials_complete(here, trials=2)
