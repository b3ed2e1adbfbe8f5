"""Jobs of a real SLURM: stopped in each of its ways, they go on by themselves to the end that they would have had.

What is read is what stays: run.json, the weights, the W&B run.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from stormproof.checkpoint import Store
from tests.cluster.slurm import Cluster, poll, run_cluster
from tests.commands.test_recovery import wandb_rows
from tests.support.forked_command import ROOT

pytestmark = pytest.mark.cluster

SCRIPT = str(ROOT / "scripts" / "slurm" / "train.sbatch")
WORDS = (
    "callbacks.slow._target_=mine.Slow", "callbacks.recovery.every_n_train_steps=7", "trainer.accelerator=cpu",
    "trainer.max_epochs=5", "model.dropout=0.2",
)  # fmt: skip
STEPS = 100
TWO_RANKS = (*WORDS, "trainer.strategy=ddp", "name=run")
TWO_NODES = ("--nodes=2", "--time=5")
MINE = """
import os, time
from pytorch_lightning import Callback

class Slow(Callback):
    \"\"\"A run that begins takes the time in which something can happen to it; one that goes on does not.\"\"\"

    def on_train_start(self, trainer, *args):
        slow = trainer.global_step == 0 and os.environ.get("SLOW_RANK", "0") == str(trainer.global_rank)
        self.seconds = float(os.environ.get("SLOW_SECONDS", "0")) if slow else 0

    def on_train_batch_start(self, *args):
        time.sleep(self.seconds)
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Two nodes for all tests of this process."""
    with run_cluster() as started:
        yield started


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs of the same commands, without SLURM and undisturbed."""
    folder = prepare_checkout(tmp_path_factory.mktemp("whole"))
    for overrides in (("trainer.devices=2", *TWO_RANKS), ("-m", "seed=1,2", *WORDS)):
        command = [sys.executable, "train.py", *overrides, "logger=none"]
        subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=150)
    return folder / "runs"


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """Where jobs are submitted."""
    return prepare_checkout(tmp_path)


def prepare_checkout(folder: Path) -> Path:
    (folder / "train.py").symlink_to(ROOT / "train.py")
    (folder / "mine.py").write_text(MINE)
    return folder


def read_record(run: Path) -> dict[str, Any]:
    """``run.json``; nothing yet where the run has not begun."""
    path = run / "run.json"
    return json.loads(path.read_text()) if path.exists() else {"attempts": []}


def has_trained(run: Path) -> bool:
    attempts = read_record(run)["attempts"]
    return bool(attempts) and attempts[-1]["first_step"] is not None


def has_saved(run: Path) -> bool:
    return has_trained(run) and Store(run / "checkpoints").read_checkpoints()[-1].step > 0


def latest_weights(run: Path) -> dict[str, Any]:
    checkpoint = Store(run / "checkpoints").latest_checkpoint()
    assert checkpoint is not None
    return torch.load(checkpoint.path, weights_only=True)


def assert_same_end(run: Path, whole: Path) -> None:
    assert read_record(run)["status"] == "finished"
    weights, expected_weights = latest_weights(run), latest_weights(whole / run.name)
    assert weights["global_step"] == expected_weights["global_step"] == STEPS
    assert weights["state_dict"].keys() == expected_weights["state_dict"].keys()
    assert all(
        torch.equal(value, expected_weights["state_dict"][name]) for name, value in weights["state_dict"].items()
    )
    assert repr(weights["optimizer_states"]) == repr(expected_weights["optimizer_states"])
    summaries = [json.loads((folder / run.name / "summary.json").read_text()) for folder in (run.parent, whole)]
    assert summaries[0]["test"] == summaries[1]["test"]


def assert_requeued(run: Path, job: str, reason: str) -> None:
    """In two attempts of one job, the first of which was told to end, saved, and lost nothing."""
    first, second = read_record(run)["attempts"]
    assert first["preempted"]
    assert reason in first["reason"]
    assert 0 < first["last_step"] < STEPS
    assert second["first_step"] == first["last_step"]
    assert [attempt["jobs"]["SLURM_JOB_ID"] for attempt in (first, second)] == [job, job]
    starts = [int(attempt["jobs"].get("SLURM_RESTART_COUNT", "0")) for attempt in (first, second)]
    assert starts == [starts[0], starts[0] + 1]


def test_two_nodes_end_with_the_weights_of_two_ranks_on_one(cluster: Cluster, whole: Path, here: Path):
    job = cluster.submit(*TWO_NODES, SCRIPT, *TWO_RANKS, "logger=none", cwd=here)
    assert cluster.wait(job) == "COMPLETED"
    run = here / "runs" / "run"
    (attempt,) = read_record(run)["attempts"]
    assert attempt["ranks"] == 2
    assert attempt["jobs"] == {"SLURM_JOB_ID": job}
    assert_same_end(run, whole)


def test_a_job_goes_on_after_its_time_limit_though_one_rank_is_slow(cluster: Cluster, whole: Path, here: Path):
    # Lightning's own answer to this signal, a barrier inside of the handler, waits for ever here.
    slow = {"SLOW_RANK": "1", "SLOW_SECONDS": "0.7"}  # 70 s in all, of the one minute that there is
    # SLURM looks twice a minute, and sends the signal half a minute early rather than late. A signal that comes before
    # training, where starting takes as long, requeues the job too, and leaves no attempt.
    limit = ("--nodes=2", "--time=1", "--signal=USR1@1")
    job = cluster.submit(*limit, SCRIPT, *TWO_RANKS, "logger=none", cwd=here, env=slow)
    assert cluster.wait(job, 150) == "COMPLETED"
    run = here / "runs" / "run"
    assert_requeued(run, job, "SIGUSR1")
    assert_same_end(run, whole)


def test_a_requeued_job_goes_on_in_the_same_folder_and_the_same_wandb_run(cluster: Cluster, whole: Path, here: Path):
    job = cluster.submit(
        *TWO_NODES, SCRIPT, *TWO_RANKS, "logger=wandb", cwd=here, env={"SLOW_SECONDS": "0.3", "WANDB_MODE": "offline"}
    )
    run = here / "runs" / "run"
    poll(lambda: has_trained(run), "training has begun")
    cluster.run_command("scontrol", "requeue", job)
    assert cluster.wait(job) == "COMPLETED"
    assert_requeued(run, job, "SIGTERM")
    assert_same_end(run, whole)
    run_id = read_record(run)["id"]
    assert len(list(run.glob(f"wandb/offline-run-*-{run_id}/run-{run_id}.wandb"))) == 2
    steps = [row["_step"] for history in wandb_rows(run) for row in history]
    assert steps == sorted(set(steps))
    assert steps[-1] == STEPS


@pytest.mark.parametrize("node", ["n1", "n2"])
def test_a_job_goes_on_when_the_node_of_a_rank_was_killed(node: str, cluster: Cluster, whole: Path, here: Path):
    slow = {"SLOW_SECONDS": "0.3"}
    job = cluster.submit(*TWO_NODES, SCRIPT, *TWO_RANKS, "logger=none", cwd=here, env=slow)
    run = here / "runs" / "run"
    poll(lambda: has_saved(run), "a step has been saved")
    cluster.kill_node(node)
    cluster.start_node(node)
    assert cluster.wait(job) == "COMPLETED"
    first, second = read_record(run)["attempts"]
    if node == "n1":
        assert first["reason"] == "it was killed"
    else:  # rank 0 notices, and srun waits with its code until SLURM has noticed, too
        assert first["code"] == 1
        assert "by peer" in first["reason"]
    assert 0 <= first["last_step"] - second["first_step"] <= 7  # steps between two checkpoints
    assert [attempt["jobs"]["SLURM_JOB_ID"] for attempt in (first, second)] == [job, job]
    assert_same_end(run, whole)


def test_an_element_of_an_array_trains_its_seed_and_goes_on_without_the_others(
    cluster: Cluster, whole: Path, here: Path
):
    slow = {"SLOW_SECONDS": "0.1"}
    job = cluster.submit("--array=1-2", "--time=5", SCRIPT, *WORDS, "logger=none", cwd=here, env=slow)
    first_run, second_run = runs = [here / "runs" / name for name in run_names_by_seed(whole)]
    poll(lambda: all(map(has_trained, runs)), "both have begun to train")
    assert (
        read_record(second_run)["attempts"][0]["jobs"]["SLURM_JOB_ID"] == job
    )  # the last one has the number of the whole array
    cluster.run_command("scancel", "--signal=USR1", f"{job}_2")
    poll(lambda: len(read_record(second_run)["attempts"]) == 2, "the second one has been started again")
    poll(lambda: all(read_record(run)["status"] == "finished" for run in runs), "both have finished")
    assert len(read_record(first_run)["attempts"]) == 1
    assert_requeued(second_run, job, "SIGUSR1")
    for run in runs:
        assert_same_end(run, whole)


def run_names_by_seed(runs: Path) -> list[str]:
    """The default names of the runs with the seeds 1 and 2."""
    seeds = {yaml.safe_load(file.read_text())["seed"]: file.parent.name for file in runs.glob("*/config.yaml")}
    return [seeds[1], seeds[2]]


def test_a_cancelled_job_stays_cancelled_and_has_saved(cluster: Cluster, here: Path):
    slow = {"SLOW_SECONDS": "0.3"}
    job = cluster.submit("--time=5", SCRIPT, *WORDS, "name=run", "logger=none", cwd=here, env=slow)
    run = here / "runs" / "run"
    poll(lambda: has_trained(run), "training has begun")
    cluster.run_command("scancel", job)
    assert cluster.wait(job) == "CANCELLED"
    assert read_record(run)["status"] == "preempted"
    assert latest_weights(run)["global_step"] == read_record(run)["attempts"][0]["last_step"]


SWEEP = ("-m", "hydra/launcher=submitit_slurm", "hydra.launcher.timeout_min=5", "logger=none", *WORDS)


def start_sweep(cluster: Cluster, here: Path, *arguments: str, **env: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "train.py", *SWEEP, *arguments], cwd=here, env={**cluster.env, **env},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def test_a_preempted_job_of_a_sweep_goes_on_and_the_sweep_waits_for_it(cluster: Cluster, whole: Path, here: Path):
    first_run, second_run = runs = [here / "runs" / name for name in run_names_by_seed(whole)]
    with start_sweep(cluster, here, "seed=1,2", SLOW_SECONDS="0.1") as sweeping:
        poll(lambda: all(map(has_trained, runs)), "both have begun to train")
        job = read_record(second_run)["attempts"][0]["jobs"]["SLURM_ARRAY_JOB_ID"]
        cluster.run_command("scancel", "--signal=USR2", f"{job}_1")
        output, _ = sweeping.communicate(timeout=120)
    assert sweeping.returncode == 0, output
    assert len(read_record(first_run)["attempts"]) == 1
    assert_requeued(second_run, job, "SIGUSR2")
    for run in runs:
        assert_same_end(run, whole)
    with start_sweep(cluster, here, "seed=1,2") as repeated:
        told_again, _ = repeated.communicate(timeout=120)
    assert repeated.returncode == 0, told_again
    assert told_again[told_again.index("2 runs, best on validation first") :] in output
    assert [len(read_record(run)["attempts"]) for run in runs] == [1, 2]


def test_a_job_of_a_sweep_may_have_two_nodes(cluster: Cluster, whole: Path, here: Path):
    overrides = ("hydra.launcher.nodes=2", "trainer.num_nodes=2", *TWO_RANKS[len(WORDS) :])
    with start_sweep(cluster, here, *overrides) as sweeping:
        output, _ = sweeping.communicate(timeout=120)
    assert sweeping.returncode == 0, output
    assert [attempt["ranks"] for attempt in read_record(here / "runs" / "run")["attempts"]] == [2]
    assert_same_end(here / "runs" / "run", whole)
