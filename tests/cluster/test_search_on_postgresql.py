"""A search whose trials are in a PostgreSQL: its workers are killed, and the server goes away.

What is read is what stays: answer.json, and each trial's run.json.
"""

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from stormproof.checkpoint import Lease
from stormproof_train.search.work_queue import trial_name
from tests.cluster.postgresql import PostgreSQL
from tests.cluster.slurm import poll
from tests.support.cases import DRILL_STRIDE
from tests.support.forked_command import ROOT

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(500)]

KILLS, TRIALS = (
    (10, 24) if DRILL_STRIDE == 1 else (4, 12)
)  # not over before the last kill, on a machine twice as fast either
INTERVAL = 7  # steps between two checkpoints
EPOCHS = 9  # of 20 steps
WORDS = (
    "activation=relu,elu", "optimizer.lr=tag(log,interval(1e-4,1e-1))", f"trainer.max_epochs={EPOCHS}", "logger=none",
    "callbacks.slow._target_=mine.Slow", f"callbacks.recovery.every_n_train_steps={INTERVAL}",
    f"search.trials={TRIALS}",
    "search.rungs=2", "search.final_seeds=2", "search.name=mine",
)  # fmt: skip
MINE = """
import time
from pytorch_lightning import Callback

class Slow(Callback):
    def on_train_batch_start(self, *args):
        time.sleep(0.02)  # in which something can happen
"""


@pytest.fixture(scope="module")
def server() -> Iterator[PostgreSQL]:
    with TemporaryDirectory(prefix="postgresql-") as folder:
        running = PostgreSQL(Path(folder))
        running.start()
        try:
            yield running
        finally:
            running.stop()


@pytest.fixture
def work(server: PostgreSQL, tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Starts a worker in a session of its own; what is left of it is killed in the end."""
    (tmp_path / "mine.py").write_text(MINE)
    processes = []

    def start(*arguments: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, str(ROOT / "train.py"), "search", *WORDS, *arguments, f"search.storage={server.url}"]
        with (tmp_path / "told.txt").open("ab") as log:
            processes.append(subprocess.Popen(command, cwd=tmp_path, stdout=log, stderr=log, start_new_session=True))
        return processes[-1]

    yield start
    for process in processes:
        kill(process, group=True)


def kill(worker: subprocess.Popen[bytes], *, group: bool) -> None:
    """SIGKILL for a worker, or for its trial and all else that it has started, too."""
    with suppress(ProcessLookupError):
        (os.killpg if group else os.kill)(worker.pid, signal.SIGKILL)
    worker.wait()


def attempts(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "run.json").read_text())["attempts"]


def test_whatever_worker_is_killed_exactly_as_many_trials_end_and_none_begins_anew(
    work: Callable[..., subprocess.Popen[bytes]], server: PostgreSQL, tmp_path: Path
):
    draw = random.Random(0)
    workers, killed = [work(), work()], set()
    for kills in range(KILLS):
        time.sleep(draw.uniform(0, 12))  # any moment, a worker's start and a promotion among them
        assert workers[kills % 2].poll() is None, f"over after {kills} kills: {(tmp_path / 'told.txt').read_text()}"
        kill(workers[kills % 2], group=draw.random() < 0.5)
        killed.add(workers[kills % 2].pid)
        workers[kills % 2] = work()
    assert [entry.wait(timeout=240) for entry in workers] == [0, 0], (tmp_path / "told.txt").read_text()

    search = tmp_path / "searches" / "mine"
    answer = json.loads((search / "answer.json").read_text())
    assert [entry["number"] for entry in answer["trials"]] == list(range(TRIALS))
    assert {entry["state"] for entry in answer["trials"]} == {"complete", "pruned"}
    assert len(answer["final"]["winner"]) == len(answer["final"]["default"]) == 2
    assert answer["test"]["accuracy"]["value"] > 0.8
    runs = sorted((search / "trials").iterdir())
    assert [entry.name for entry in runs] == [f"trial-{number:04d}" for number in range(TRIALS)]
    for run, trial in zip(runs, answer["trials"], strict=True):
        trained_attempts = [entry for entry in attempts(run) if entry["first_step"] is not None]
        assert trained_attempts[0]["first_step"] == 0
        for before, after in itertools.pairwise(trained_attempts):
            assert 0 <= before["last_step"] - after["first_step"] <= INTERVAL
        if trial["state"] == "complete":
            assert trained_attempts[-1]["last_step"] == trial["steps"] == 20 * EPOCHS
    left = {file.parent.name: Lease.read_owner(file.parent) for file in (search / "claims").glob("*/lease.json")}
    assert all(owner is not None and owner.pid in killed for owner in left.values()), left  # nobody else could
    assert left.keys() <= {
        trial_name(entry["number"]) for entry in answer["trials"] if entry["state"] == "pruned"
    }  # at its rung


def test_the_password_of_the_storage_is_in_no_file(
    work: Callable[..., subprocess.Popen[bytes]], server: PostgreSQL, tmp_path: Path
):
    overrides = (
        "search.trials=2",
        "search.final_seeds=0",
        "trainer.max_epochs=1",
        "search.name=secret",
        "logger=wandb",
    )
    assert work(*overrides).wait(timeout=120) == 0, (tmp_path / "told.txt").read_text()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"search.json", "answer.json", "config.yaml", "trial-0001.log", "told.txt"} <= {path.name for path in files}
    assert not [str(path) for path in files if server.password.encode() in path.read_bytes()]


def test_a_worker_waits_for_a_server_that_goes_away_and_loses_no_trial(
    work: Callable[..., subprocess.Popen[bytes]], server: PostgreSQL, tmp_path: Path
):
    search = tmp_path / "searches" / "away"
    asks = search / "trials" / "trial-0001" / "metrics.csv"
    worker = work("search.trials=4", "search.final_seeds=0", "search.name=away")
    poll(asks.exists, "the second trial trains", 120)
    server.stop()
    try:
        poll(lambda: ",val/loss," in asks.read_text(), "it asks whether it goes on", 120)
    finally:
        server.start()
    assert worker.wait(timeout=240) == 0, (tmp_path / "told.txt").read_text()
    answer = json.loads((search / "answer.json").read_text())
    assert {trial["state"] for trial in answer["trials"]} == {"complete", "pruned"}
    assert len(answer["trials"]) == len(list((search / "trials").iterdir())) == 4
    assert len(attempts(asks.parent)) <= 2  # a start, and a promotion: it was not started again for this
