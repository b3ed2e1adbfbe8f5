"""A job goes on with another number of ranks: each sample once an epoch, in the same steps."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl

from stormproof.testing import FaultInjector
from tests.support.exact_resume_training import SYNC_SAVE, Cell, train
from tests.support.forked_attempts import Outcome, run_attempt

pytestmark = pytest.mark.slow

SAMPLES = 56
TWO_RANKS, ONE_RANK = Cell(ranks=2, samples=SAMPLES), Cell(ranks=1, accumulate=2, samples=SAMPLES)
Steps = dict[tuple[int, int], set[int]]
"""The samples of each step, by the epoch and the steps done before."""


class SampleRecorder(pl.Callback):
    """Writes down the samples of each batch when it begins."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        with (self.folder / f"taken{trainer.global_rank}.jsonl").open("a") as file:
            line = [trainer.current_epoch, trainer.global_step, batch[2].tolist()]
            file.write(json.dumps(line) + "\n")


def train_recording_samples(cell: Cell, folder: Path, extra: Any = None, **options: Any) -> Any:
    return train(cell, folder, [*(extra or []), SampleRecorder(folder)], **options)


def read_samples(folder: Path) -> Steps:
    steps: Steps = defaultdict(set)
    for file in folder.glob("taken*.jsonl"):
        for line in file.read_text().splitlines():
            epoch, step, samples = json.loads(line)
            steps[epoch, step].update(samples)
    return steps


def run_then_kill(cell: Cell, folder: Path, kill_at: int | None = None, **options: Any) -> Outcome:
    faults = None if kill_at is None else partial(FaultInjector().stop, "on_train_batch_start", kill_at)
    outcome = run_attempt(cell, folder, faults, function=train_recording_samples, recovery=SYNC_SAVE, **options)
    assert outcome.was_killed == (kill_at is not None), outcome.output
    assert outcome.was_killed or outcome.results is not None, outcome.output
    return outcome


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcome, Steps]:
    folder = tmp_path_factory.mktemp("whole")
    return run_then_kill(TWO_RANKS, folder), read_samples(folder)


@pytest.mark.parametrize(
    "attempts",
    [
        [(TWO_RANKS, 3), (ONE_RANK, 10), (TWO_RANKS, 16), (ONE_RANK, None)],
        pytest.param(
            [(ONE_RANK, 5), (TWO_RANKS, 7), (ONE_RANK, 14), (TWO_RANKS, None)], marks=pytest.mark.drill
        ),  # at the ends of epochs too
        pytest.param([(TWO_RANKS, 21 - 1), (ONE_RANK, None)], marks=pytest.mark.drill),
        pytest.param(
            [
                (replace(TWO_RANKS, sharded=True), 3),
                (replace(ONE_RANK, sharded=True), 10),
                (replace(TWO_RANKS, sharded=True), None),
            ],
            marks=pytest.mark.drill,
        ),
        [
            (replace(TWO_RANKS, sharded=True, saves_shards=True), 3),
            (replace(ONE_RANK, sharded=True, saves_shards=True), 10),
            (TWO_RANKS, 13),
            (replace(TWO_RANKS, sharded=True, saves_shards=True), 16),
            (replace(ONE_RANK, sharded=True), None),
        ],
    ],
    ids=["two first", "one first", "the last step", "sharded", "in shards, complete, in shards"],
)
def test_each_sample_comes_once_an_epoch_in_the_same_steps(
    attempts: list[tuple[Cell, int | None]], whole: tuple[Outcome, Steps], tmp_path: Path
):
    for cell, kill_at in attempts:
        outcome = run_then_kill(cell, tmp_path, kill_at)
    assert outcome.results is not None
    assert whole[0].results is not None
    steps = read_samples(tmp_path)
    for epoch in range(3):
        epoch_steps = [steps[key] for key in sorted(steps) if key[0] == epoch]
        assert sorted(number for step in epoch_steps for number in step) == list(range(SAMPLES))
    assert steps == whole[1]
    resumed_result, expected_result = outcome.results[0], whole[0].results[0]
    assert resumed_result["step"] == expected_result["step"] == 21
    assert resumed_result["schedulers"][0]["last_epoch"] == expected_result["schedulers"][0]["last_epoch"]
    assert [entry[1] for entry in resumed_result["journal"] if entry[0] == "epoch"] == [0, 1, 2]
    assert "Each sample still occurs once per epoch" in outcome.output


def test_another_global_batch_in_the_middle_of_an_epoch_is_refused_in_a_sentence(tmp_path: Path):
    run_then_kill(TWO_RANKS, tmp_path, 3)
    one_rank_cell = Cell(ranks=1, samples=SAMPLES)
    outcome = run_attempt(one_rank_cell, tmp_path, recovery=SYNC_SAVE)
    assert outcome.exit_codes == (2,), outcome.output
    assert "epoch with 2 x 1 x 4 samples per step, but this job has 1 x 1 x 4" in outcome.output
