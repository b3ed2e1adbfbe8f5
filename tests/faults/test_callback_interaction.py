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
from tests.support.difference import find_differences
from tests.support.exact_resume_training import Cell
from tests.support.forked_attempts import Outcome, assert_bitwise_equal, run_attempt, train_uninterrupted
from tests.support.forked_command import ROOT

pytestmark = pytest.mark.slow

MID_EPOCH = Cell(validate_every=4)


def assert_same_training(actual: Outcome, expected: Outcome, *ignored_keys: str) -> None:
    assert actual.results is not None, actual.output
    assert expected.results is not None, expected.output
    pair = [
        {key: value for key, value in run.results[0].items() if key not in {"recovery", *ignored_keys}}
        for run in (actual, expected)
    ]
    assert find_differences(*pair) == []


def without_recovery(callbacks: list[pl.Callback]) -> list[pl.Callback]:
    return [callback for callback in callbacks if not isinstance(callback, CheckpointRecovery)]


def shuffle_callbacks(seed: int) -> Callable[[list[pl.Callback]], list[pl.Callback]]:
    return lambda callbacks: random.Random(seed).sample(callbacks, len(callbacks))


def recovery_first(callbacks: list[pl.Callback]) -> list[pl.Callback]:
    return [callbacks[-1], *callbacks[:-1]]


@pytest.mark.parametrize(
    "cell", [Cell(workers=2), Cell(accumulate=4, validate_every=4), Cell(ranks=2), Cell(ranks=2, sharded=True)]
)
def test_it_changes_no_bit_of_a_training_that_is_left_alone(cell: Cell, tmp_path: Path):
    assert_bitwise_equal(run_attempt(cell, tmp_path, arrange=without_recovery), train_uninterrupted(cell))


@pytest.mark.parametrize("accumulate", [1, 4])
def test_no_workers_and_two_give_equal_weights(accumulate: int):
    # validation is wrapped too: a plain loader draws a seed each time that it starts workers, from what training draws
    no_workers, two_workers = (
        train_uninterrupted(Cell(workers=workers, accumulate=accumulate, resumable_validation=True))
        for workers in (0, 2)
    )
    assert_bitwise_equal(no_workers, two_workers)


@pytest.mark.parametrize(
    "arrange", [recovery_first, *(pytest.param(shuffle_callbacks(n), marks=pytest.mark.drill) for n in (1, 2, 3))]
)
@pytest.mark.parametrize("phase", ["on_train_batch_end", "on_validation_end"])
def test_its_place_among_the_callbacks_does_not_matter(
    arrange: Callable[[list[pl.Callback]], list[pl.Callback]], phase: str, tmp_path: Path
):
    killed = run_attempt(
        MID_EPOCH, tmp_path, lambda: FaultInjector().stop(at=phase, step=MID_EPOCH.validated_step), arrange=arrange
    )
    assert killed.was_killed, killed.output
    assert_bitwise_equal(run_attempt(MID_EPOCH, tmp_path, arrange=arrange), train_uninterrupted(MID_EPOCH))


def test_it_needs_no_logger(tmp_path: Path):
    options: dict[str, Any] = {"trainer": {"logger": False}}
    assert run_attempt(MID_EPOCH, tmp_path, lambda: FaultInjector().stop(step=17), **options).was_killed
    assert_same_training(run_attempt(MID_EPOCH, tmp_path, **options), train_uninterrupted(MID_EPOCH), "rows")


def test_it_shares_its_folder_s_parent_with_a_model_checkpoint(tmp_path: Path):
    def with_neighbour(callbacks: list[pl.Callback]) -> list[pl.Callback]:
        return [*callbacks, ModelCheckpoint(tmp_path, save_last=True, every_n_train_steps=1, save_top_k=-1)]

    assert run_attempt(MID_EPOCH, tmp_path, lambda: FaultInjector().stop(step=20), arrange=with_neighbour).was_killed
    assert_bitwise_equal(run_attempt(MID_EPOCH, tmp_path, arrange=with_neighbour), train_uninterrupted(MID_EPOCH))
    assert (tmp_path / "last.ckpt").exists()
    our_checkpoints = list((tmp_path / "checkpoints").glob("*.ckpt"))
    assert our_checkpoints
    assert all(file.with_suffix(".json").exists() for file in our_checkpoints)


LIGHTNING_PYTORCH_SCRIPT = """
import sys
from pathlib import Path

import lightning.pytorch, lightning.pytorch.callbacks, lightning.pytorch.loggers
import pytorch_lightning.callbacks, pytorch_lightning.loggers
from stormproof import CheckpointRecovery, StepTimer, resumable
from stormproof.testing import FaultInjector

ours = {name: module for name, module in sys.modules.items() if name.startswith("pytorch_lightning")}
for name in ("pytorch_lightning", "pytorch_lightning.callbacks", "pytorch_lightning.loggers"):
    sys.modules[name] = sys.modules[name.replace("pytorch_lightning", "lightning.pytorch")]
from tests.support.forked_attempts import assert_bitwise_equal, run_attempt, train_uninterrupted
from tests.support.exact_resume_training import Cell, pl
sys.modules.update(ours)

assert pl.Trainer.__module__.startswith("lightning.pytorch")
cell = Cell(validate_every=4)
for phase, step in (("on_train_batch_end", 6), ("on_validation_end", 8), ("on_train_epoch_end", 30)):
    folder = Path(sys.argv[1]) / str(step)
    assert run_attempt(cell, folder, lambda: FaultInjector().stop(at=phase, step=step)).was_killed
    assert_bitwise_equal(run_attempt(cell, folder), train_uninterrupted(cell))
print("exact")
"""


def test_a_trainer_of_the_other_lightning_resumes_exactly_too(tmp_path: Path):
    script = [sys.executable, "-W", "ignore", "-c", LIGHTNING_PYTORCH_SCRIPT, str(tmp_path)]
    outcome = subprocess.run(script, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)
    assert outcome.stdout.endswith("exact\n"), outcome.stderr
