"""The callback in other people's trainings: it changes nothing, and nothing around it changes what it does."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
from pytorch_lightning.callbacks import ModelCheckpoint

from stormproof import CheckpointRecovery
from stormproof.testing import FaultInjector
from tests.support.difference import differences
from tests.support.drill import Outcome, assert_same, attempt, uninterrupted
from tests.support.forked_command import ROOT
from tests.support.training import Cell

pytestmark = pytest.mark.slow

MID = Cell(validate_every=4)


def assert_same_training(one: Outcome, other: Outcome, *but: str) -> None:
    assert one.results is not None, one.output
    assert other.results is not None, other.output
    pair = [
        {key: value for key, value in run.results[0].items() if key not in {"recovery", *but}} for run in (one, other)
    ]
    assert differences(*pair) == []


def without_recovery(callbacks: list[pl.Callback]) -> list[pl.Callback]:
    return [callback for callback in callbacks if not isinstance(callback, CheckpointRecovery)]


def shuffled(seed: int) -> Callable[[list[pl.Callback]], list[pl.Callback]]:
    return lambda callbacks: random.Random(seed).sample(callbacks, len(callbacks))


def recovery_first(callbacks: list[pl.Callback]) -> list[pl.Callback]:
    return [callbacks[-1], *callbacks[:-1]]


@pytest.mark.parametrize(
    "cell", [Cell(workers=2), Cell(accumulate=4, validate_every=4), Cell(ranks=2), Cell(ranks=2, sharded=True)]
)
def test_it_changes_no_bit_of_a_training_that_is_left_alone(cell: Cell, tmp_path: Path):
    assert_same(attempt(cell, tmp_path, arrange=without_recovery), uninterrupted(cell))


@pytest.mark.parametrize("accumulate", [1, 4])
def test_no_workers_and_two_give_equal_weights(accumulate: int):
    # validation is wrapped too: a plain loader draws a seed each time that it starts workers, from what training draws
    none, two = (
        uninterrupted(Cell(workers=workers, accumulate=accumulate, resumable_validation=True)) for workers in (0, 2)
    )
    assert_same(none, two)


@pytest.mark.parametrize(
    "arrange", [recovery_first, *(pytest.param(shuffled(n), marks=pytest.mark.drill) for n in (1, 2, 3))]
)
@pytest.mark.parametrize("phase", ["on_train_batch_end", "on_validation_end"])
def test_its_place_among_the_callbacks_does_not_matter(
    arrange: Callable[[list[pl.Callback]], list[pl.Callback]], phase: str, tmp_path: Path
):
    killed = attempt(MID, tmp_path, lambda: FaultInjector().stop(at=phase, step=MID.validated_step), arrange=arrange)
    assert killed.killed, killed.output
    assert_same(attempt(MID, tmp_path, arrange=arrange), uninterrupted(MID))


def test_it_needs_no_logger(tmp_path: Path):
    options: dict[str, Any] = {"trainer": {"logger": False}}
    assert attempt(MID, tmp_path, lambda: FaultInjector().stop(step=17), **options).killed
    assert_same_training(attempt(MID, tmp_path, **options), uninterrupted(MID), "rows")


def test_it_shares_its_folder_s_parent_with_a_model_checkpoint(tmp_path: Path):
    def with_neighbour(callbacks: list[pl.Callback]) -> list[pl.Callback]:
        return [*callbacks, ModelCheckpoint(tmp_path, save_last=True, every_n_train_steps=1, save_top_k=-1)]

    assert attempt(MID, tmp_path, lambda: FaultInjector().stop(step=20), arrange=with_neighbour).killed
    assert_same(attempt(MID, tmp_path, arrange=with_neighbour), uninterrupted(MID))
    assert (tmp_path / "last.ckpt").exists()
    ours = list((tmp_path / "checkpoints").glob("*.ckpt"))
    assert ours
    assert all(file.with_suffix(".json").exists() for file in ours)


IN_THE_OTHER = """
import sys
from pathlib import Path

import lightning.pytorch, lightning.pytorch.callbacks, lightning.pytorch.loggers
import pytorch_lightning.callbacks, pytorch_lightning.loggers
from stormproof import CheckpointRecovery, StepTimer, resumable
from stormproof.testing import FaultInjector

ours = {name: module for name, module in sys.modules.items() if name.startswith("pytorch_lightning")}
for name in ("pytorch_lightning", "pytorch_lightning.callbacks", "pytorch_lightning.loggers"):
    sys.modules[name] = sys.modules[name.replace("pytorch_lightning", "lightning.pytorch")]
from tests.support.drill import assert_same, attempt, uninterrupted
from tests.support.training import Cell, pl
sys.modules.update(ours)

assert pl.Trainer.__module__.startswith("lightning.pytorch")
cell = Cell(validate_every=4)
for phase, step in (("on_train_batch_end", 6), ("on_validation_end", 8), ("on_train_epoch_end", 30)):
    folder = Path(sys.argv[1]) / str(step)
    assert attempt(cell, folder, lambda: FaultInjector().stop(at=phase, step=step)).killed
    assert_same(attempt(cell, folder), uninterrupted(cell))
print("exact")
"""


def test_a_trainer_of_the_other_lightning_resumes_exactly_too(tmp_path: Path):
    script = [sys.executable, "-W", "ignore", "-c", IN_THE_OTHER, str(tmp_path)]
    done = subprocess.run(script, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)
    assert done.stdout.endswith("exact\n"), done.stderr
