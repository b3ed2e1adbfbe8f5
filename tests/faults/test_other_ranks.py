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
from tests.support.drill import Outcome, attempt
from tests.support.training import IN_STEP, Cell, train

pytestmark = pytest.mark.slow

SAMPLES = 56
TWO, ONE = Cell(ranks=2, samples=SAMPLES), Cell(ranks=1, accumulate=2, samples=SAMPLES)
Steps = dict[tuple[int, int], set[int]]
"""The samples of each step, by the epoch and the steps done before."""


class Taken(pl.Callback):
    """Writes down the samples of each batch when it begins."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        with (self.folder / f"taken{trainer.global_rank}.jsonl").open("a") as file:
            line = [trainer.current_epoch, trainer.global_step, batch[2].tolist()]
            file.write(json.dumps(line) + "\n")


def noting(cell: Cell, folder: Path, extra: Any = None, **options: Any) -> Any:
    return train(cell, folder, [*(extra or []), Taken(folder)], **options)


def taken(folder: Path) -> Steps:
    steps: Steps = defaultdict(set)
    for file in folder.glob("taken*.jsonl"):
        for line in file.read_text().splitlines():
            epoch, step, samples = json.loads(line)
            steps[epoch, step].update(samples)
    return steps


def run(cell: Cell, folder: Path, kill_at: int | None = None, **options: Any) -> Outcome:
    faults = None if kill_at is None else partial(FaultInjector().stop, "on_train_batch_start", kill_at)
    done = attempt(cell, folder, faults, function=noting, recovery=IN_STEP, **options)
    assert done.killed == (kill_at is not None), done.output
    assert done.killed or done.results is not None, done.output
    return done


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcome, Steps]:
    folder = tmp_path_factory.mktemp("whole")
    return run(TWO, folder), taken(folder)


@pytest.mark.parametrize(
    "attempts",
    [
        [(TWO, 3), (ONE, 10), (TWO, 16), (ONE, None)],
        pytest.param(
            [(ONE, 5), (TWO, 7), (ONE, 14), (TWO, None)], marks=pytest.mark.drill
        ),  # at the ends of epochs too
        pytest.param([(TWO, 21 - 1), (ONE, None)], marks=pytest.mark.drill),
        pytest.param(
            [(replace(TWO, sharded=True), 3), (replace(ONE, sharded=True), 10), (replace(TWO, sharded=True), None)],
            marks=pytest.mark.drill,
        ),
    ],
    ids=["two first", "one first", "the last step", "sharded"],
)
def test_each_sample_comes_once_an_epoch_in_the_same_steps(
    attempts: list[tuple[Cell, int | None]], whole: tuple[Outcome, Steps], tmp_path: Path
):
    for cell, kill_at in attempts:
        done = run(cell, tmp_path, kill_at)
    assert done.results is not None
    assert whole[0].results is not None
    steps = taken(tmp_path)
    for epoch in range(3):
        mine = [steps[key] for key in sorted(steps) if key[0] == epoch]
        assert sorted(number for step in mine for number in step) == list(range(SAMPLES))
    assert steps == whole[1]
    one, other = done.results[0], whole[0].results[0]
    assert one["step"] == other["step"] == 21
    assert one["schedulers"][0]["last_epoch"] == other["schedulers"][0]["last_epoch"]
    assert [entry[1] for entry in one["journal"] if entry[0] == "epoch"] == [0, 1, 2]
    assert "each sample still comes once an epoch" in done.output


def test_another_global_batch_in_the_middle_of_an_epoch_is_refused_in_a_sentence(tmp_path: Path):
    run(TWO, tmp_path, 3)
    other = Cell(ranks=1, samples=SAMPLES)
    done = attempt(other, tmp_path, recovery=IN_STEP)
    assert done.exit_codes == (2,), done.output
    assert (
        "steps took 2 x 1 x 4 samples, in the middle of an epoch, and those of this job take 1 x 1 x 4" in done.output
    )
