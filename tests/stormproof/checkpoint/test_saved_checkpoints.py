from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from stormproof import CheckpointRecovery, resumable
from stormproof.testing import flip_bit
from tests.support.recovery_fits import BatchEndCallback, FakeClock, checkpoint_steps, fit_with_recovery
from tests.support.small_fits import (
    BOTH_PACKAGES,
    LIGHTNING_WARNING_FILTERS,
    ValidatedRegressionModule,
    make_loader,
    make_module,
    make_trainer,
)

pytestmark = LIGHTNING_WARNING_FILTERS


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    return FakeClock(monkeypatch)


@BOTH_PACKAGES
def test_the_first_step_every_nth_and_the_end_are_saved(lightning: Any, tmp_path: Path):
    fit_with_recovery(CheckpointRecovery(tmp_path, every_n_train_steps=4, keep_last=10), lightning=lightning)
    assert checkpoint_steps(tmp_path) == [0, 4, 6]


def test_by_minutes_it_saves_once_they_are_over(clock: FakeClock, tmp_path: Path):
    def move(step: int) -> None:
        clock.now += 100 if step == 3 else 10

    fit_with_recovery(CheckpointRecovery(tmp_path, train_time_interval=2, keep_last=10), BatchEndCallback(move))
    assert checkpoint_steps(tmp_path) == [0, 3, 6]  # 10, 20, 120 s; the end in any case


def test_without_a_rule_it_saves_every_five_minutes(clock: FakeClock, tmp_path: Path):
    def move(step: int) -> None:
        clock.now += 100

    fit_with_recovery(CheckpointRecovery(tmp_path, keep_last=10), BatchEndCallback(move), max_epochs=2)
    assert checkpoint_steps(tmp_path) == [0, 3, 6, 9, 12]


def test_a_step_is_an_optimizer_step(tmp_path: Path):
    fit_with_recovery(
        CheckpointRecovery(tmp_path, every_n_train_steps=1, keep_last=10), accumulate_grad_batches=4, max_epochs=2
    )
    assert checkpoint_steps(tmp_path) == [0, 1, 2, 3, 4]


def test_the_last_few_and_each_of_a_span_are_kept(tmp_path: Path):
    recovery = CheckpointRecovery(tmp_path, every_n_train_steps=1, keep_last=2, keep_every_n_train_steps=4)
    fit_with_recovery(recovery, max_epochs=2)
    assert checkpoint_steps(tmp_path) == [4, 8, 11, 12]


def test_each_of_a_span_is_saved_where_nothing_else_is_due(tmp_path: Path):
    fit_with_recovery(CheckpointRecovery(tmp_path, train_time_interval=1e6, keep_every_n_train_steps=5), max_epochs=2)
    assert checkpoint_steps(tmp_path) == [5, 10, 12]


class _Scores(pl.Callback):
    """Logs the given values as ``score``, one a validation."""

    def __init__(self, *values: float) -> None:
        self.values = iter(values)

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        pl_module.log("score", next(self.values))


@pytest.mark.parametrize(
    ("mode", "save_top_k", "values", "kept"),
    [
        ("min", 1, [3.0, 1.0, 2.0, 4.0, 5.0, 6.0], [(4, 1.0)]),
        ("max", 1, [3.0, 1.0, 2.0, 4.0, 3.0, 2.0], [(8, 4.0)]),
        ("min", 2, [3.0, 1.0, 2.0, 4.0, 5.0, 6.0], [(4, 1.0), (6, 2.0)]),
        ("min", 1, [3.0, float("nan"), 2.0, 4.0, 5.0, 6.0], [(6, 2.0)]),
    ],
)
def test_the_state_behind_the_best_values_is_saved_right_after_their_validation(
    mode: Any, save_top_k: int, values: list[float], kept: list[tuple[int, float]], tmp_path: Path
):
    recovery = CheckpointRecovery(
        tmp_path,
        train_time_interval=1e6,
        monitor="score",
        mode=mode,
        save_top_k=save_top_k,
        keep_every_n_train_steps=11,
    )
    fit_with_recovery(recovery, _Scores(*values), max_epochs=2, val_check_interval=2)
    scored = [
        (checkpoint.step, checkpoint.score) for checkpoint in recovery.store.read_checkpoints() if checkpoint.step < 11
    ]
    assert scored == kept
    ranked = sorted(kept, key=lambda pair: pair[1], reverse=mode == "max")
    assert str(recovery.best_checkpoint()).endswith(f"-step-{ranked[0][0]}.ckpt")
    best = torch.load(str(recovery.best_checkpoint()), weights_only=True)
    assert best["global_step"] == ranked[0][0]


def test_the_best_that_is_damaged_is_walked_past(tmp_path: Path):
    recovery = CheckpointRecovery(tmp_path, train_time_interval=1e6, monitor="score", save_top_k=2)
    fit_with_recovery(recovery, _Scores(1.0, 2.0, 3.0), val_check_interval=2)
    flip_bit(Path(str(recovery.best_checkpoint())))
    assert str(recovery.best_checkpoint()).endswith("-step-4.ckpt")


def test_a_score_belongs_to_the_weights_that_were_validated_alone(tmp_path: Path):
    """Validated in the midst of an accumulation, and at a step; only the second state can be saved."""
    recovery = CheckpointRecovery(tmp_path, every_n_train_steps=1, keep_last=10, monitor="score")
    fit_with_recovery(recovery, _Scores(1.0, 2.0, 3.0), val_check_interval=2, accumulate_grad_batches=3)
    assert [(checkpoint.step, checkpoint.score) for checkpoint in recovery.store.read_checkpoints()] == [
        (0, None),
        (1, None),
        (2, 3.0),
    ]


def test_a_score_of_an_earlier_validation_is_not_that_of_a_new_training(tmp_path: Path):
    recovery = CheckpointRecovery(tmp_path, every_n_train_steps=100, monitor="val/loss")
    fit, net = make_trainer(callbacks=[recovery]), make_module(kind=ValidatedRegressionModule)
    fit.validate(net, make_loader(2), verbose=False)
    fit.fit(net, resumable(make_loader()), make_loader(2))
    assert [checkpoint.score is None for checkpoint in recovery.store.read_checkpoints()] == [True, False]
    first, last = (torch.load(checkpoint.path, weights_only=True) for checkpoint in recovery.store.read_checkpoints())
    assert [checkpoint["stormproof"]["ranks"][0]["validated"] for checkpoint in (first, last)] == [False, True]


def test_a_sanity_check_gives_no_score(tmp_path: Path):
    recovery = CheckpointRecovery(tmp_path, every_n_train_steps=100, monitor="val/loss")
    fit_with_recovery(recovery, val_check_interval=6, num_sanity_val_steps=1)
    assert [(checkpoint.step, checkpoint.score is None) for checkpoint in recovery.store.read_checkpoints()] == [
        (0, True),
        (6, False),
    ]
