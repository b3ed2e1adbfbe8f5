"""Going back from a divergence: to what, and what becomes of it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from stormproof import CheckpointRecovery, DivergenceGuard, resumable
from stormproof.errors import DivergedError
from stormproof.testing import FaultInjector, flip_bit
from tests.stormproof.divergence.diverging_fits import (
    IGNORE_WARNINGS,
    STEPS,
    Classifier,
    LearningRateSpike,
    StateRecorder,
    Validated,
    fit_with_guard,
    is_finite,
    make_loader,
    spike_at,
)
from tests.support.recovery_fits import checkpoint_steps
from tests.support.small_fits import RowsLogger, make_module, make_trainer

pytestmark = IGNORE_WARNINGS


@pytest.mark.slow
def test_what_goes_on_is_gone_back_from(tmp_path: Path):
    guard, states = DivergenceGuard(), StateRecorder()
    with pytest.warns(match=r"step 45: rolled back to the weights of step 32, the data position is unchanged$"):
        fit = fit_with_guard(tmp_path, guard, spike_at(43, 44, 45), states)
    assert (guard.skipped, guard.rollbacks) == (3, 1)
    assert is_finite(fit.lightning_module)
    assert checkpoint_steps(tmp_path)[-1] == STEPS
    saved = CheckpointRecovery(tmp_path).store.read_checkpoints()
    assert {checkpoint.step for checkpoint in saved} <= {56, 64}


@pytest.mark.slow
def test_training_that_ends_without_a_finite_loss_has_diverged(tmp_path: Path):
    guard = DivergenceGuard()
    with pytest.raises(DivergedError, match="diverges until its end at step 64, after 5 rollbacks without effect"):
        fit_with_guard(tmp_path, guard, spike_at(*range(52, STEPS + 1)))
    guard = DivergenceGuard()
    fit_with_guard(tmp_path / "recovered", guard, spike_at(*range(52, 59)))
    assert guard.rollbacks == 2


@pytest.mark.slow
def test_the_state_that_it_goes_back_to_is_saved_at_once(tmp_path: Path):
    states = StateRecorder()
    faults = spike_at(43, 44, 45).fail(at="on_train_batch_start", step=45)
    with pytest.raises(RuntimeError, match="injected fault"):
        fit_with_guard(tmp_path, DivergenceGuard(), faults, states)
    latest = CheckpointRecovery(tmp_path).latest_checkpoint()
    content = torch.load(str(latest), weights_only=True)
    assert content["global_step"] == 45
    weights, _ = states.after[32]
    assert all(torch.equal(content["state_dict"][name], value) for name, value in weights.items())


@pytest.mark.slow
def test_weights_that_were_ruined_before_it_showed_are_gone_back_from(tmp_path: Path):
    guard, states = DivergenceGuard(), StateRecorder()
    fit = fit_with_guard(
        tmp_path, guard, FaultInjector(), LearningRateSpike(48), states
    )  # a checkpoint of that very step is committed
    assert guard.rollbacks == 1
    assert {49, 50, 51} <= states.after.keys()
    (weights, _), (ruined, _), (now, _) = states.after[32], states.after[48], states.after[STEPS]
    largest = [
        max(float(weights_state["net.3.weight"].abs().max()) for weights_state in [state])
        for state in (weights, ruined, now)
    ]
    assert largest[1] > 50 * largest[0]
    assert largest[2] < 2 * largest[0]
    assert fit.global_step == STEPS


@pytest.mark.slow
@pytest.mark.parametrize("every", [4, 10])
def test_looking_seldom_it_finds_out_afterwards_and_goes_back(every: int, tmp_path: Path):
    guard = DivergenceGuard(every_n_steps=every)
    fit = fit_with_guard(tmp_path, guard, spike_at(42))
    assert (guard.skipped, guard.rollbacks) == (0, 1)
    assert is_finite(fit.lightning_module)
    assert fit.global_step == STEPS


@pytest.mark.slow
def test_no_diverged_state_is_validated(tmp_path: Path):
    rows = RowsLogger()
    fit = fit_with_guard(
        tmp_path,
        DivergenceGuard(every_n_steps=10),
        spike_at(47),
        kind=Validated,
        logger=rows,
        val_check_interval=16,
        log_every_n_steps=1,
    )
    losses = [row["val/loss"] for _, row in rows.rows if "val/loss" in row]
    assert len(losses) == 4
    assert all(map(math.isfinite, losses))
    assert is_finite(fit.lightning_module)


def test_no_diverged_state_is_saved_and_none_is_the_last(tmp_path: Path):
    for step in (45, 48, STEPS):  # between looks, at a checkpoint, and the last
        folder = tmp_path / str(step)
        guard = DivergenceGuard(every_n_steps=10)
        fit = fit_with_guard(folder, guard, FaultInjector(), LearningRateSpike(step - 1))
        assert is_finite(fit.lightning_module)
        for checkpoint in CheckpointRecovery(folder).store.read_checkpoints():
            weights = torch.load(checkpoint.path, weights_only=True)["state_dict"]
            assert weights["net.3.weight"].abs().max() < 10
        assert guard.rollbacks == 1


@pytest.mark.slow
def test_a_score_of_the_weights_that_were_left_is_not_that_of_the_ones_gone_back_to(tmp_path: Path):
    recovery = CheckpointRecovery(tmp_path, every_n_train_steps=100, monitor="val/loss", async_save=False)

    class Late(DivergenceGuard):
        """Finds out right after a validation."""

        def on_validation_start(self, *args: Any) -> None: ...

    fit = make_trainer(callbacks=[spike_at(16), Late(every_n_steps=16), recovery], val_check_interval=16)
    fit.fit(make_module(kind=Validated), resumable(make_loader()), make_loader())
    scores = {checkpoint.step: checkpoint.score for checkpoint in recovery.store.read_checkpoints()}
    assert scores.get(16) is None


def test_where_there_is_nothing_good_to_go_back_to_it_ends(tmp_path: Path):
    class Ruins(pl.Callback):
        def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
            if trainer.global_step == 44:
                for file in tmp_path.glob("*.ckpt"):
                    flip_bit(file)

    with pytest.raises(
        DivergedError, match="diverges since step 43, and there is no good checkpoint to roll back to in "
    ):
        fit_with_guard(tmp_path, DivergenceGuard(), spike_at(43, 44, 45), Ruins())


def test_what_it_went_back_behind_is_set_aside(tmp_path: Path):
    """Else retention would keep it in the place of what is healthy."""
    guard = DivergenceGuard()
    with pytest.raises(RuntimeError, match="injected fault"):
        fit_with_guard(tmp_path, guard, spike_at(43, 44, 45).fail(at="on_train_batch_start", step=46), every=10)
    assert checkpoint_steps(tmp_path) == [30, 45]
    assert [file.name for file in (tmp_path / "quarantine").glob("*.ckpt")] == ["000005-step-40.ckpt"]
    assert guard.state_dict()["rollback_steps"] == [45]


@pytest.mark.slow
def test_a_loss_that_is_larger_for_good_is_taken_for_what_it_is(tmp_path: Path):
    guard = DivergenceGuard(window=32)
    with pytest.warns(UserWarning, match="the first step after the last rollback was a spike too"):
        fit = fit_with_guard(tmp_path, guard, spike_at(*range(40, 3 * STEPS + 1), factor=50.0), max_epochs=3)
    assert fit.global_step == 3 * STEPS
    assert guard.rollbacks == 2


@pytest.mark.slow
def test_a_learning_rate_that_ruins_the_weights_again_and_again_ends_the_training(tmp_path: Path):
    """The weights that it goes back to take a healthy step each time: it is no new size of the numbers."""

    class RateStays(pl.Callback):
        def on_train_batch_start(self, trainer: Any, *args: Any) -> None:
            if trainer.global_step >= 40:
                trainer.optimizers[0].param_groups[0]["lr"] = 100.0

    guard = DivergenceGuard(window=32, max_rollbacks=2)
    with pytest.raises(
        DivergedError, match=r"\(anomaly 3 within 1000 steps, max_rollbacks is 2\): lower the learning rate"
    ):
        fit_with_guard(tmp_path, guard, FaultInjector(), RateStays(), max_epochs=4)
    assert guard.rollbacks == 2
    newest = CheckpointRecovery(tmp_path).latest_checkpoint()
    assert torch.load(str(newest), weights_only=True)["state_dict"]["net.3.weight"].abs().max() < 10


@pytest.mark.slow
@pytest.mark.parametrize("step", [STEPS - 2, STEPS - 3])
def test_what_shows_with_the_last_steps_is_gone_back_from_too(step: int, tmp_path: Path):
    guard = DivergenceGuard()
    fit = fit_with_guard(tmp_path, guard, FaultInjector(), LearningRateSpike(step))
    assert guard.rollbacks == 1
    assert fit.lightning_module.net[3].weight.abs().max() < 10
    newest = CheckpointRecovery(tmp_path).latest_checkpoint()
    assert torch.load(str(newest), weights_only=True)["state_dict"]["net.3.weight"].abs().max() < 10


@pytest.mark.slow
def test_checkpoints_that_never_grow_old_enough_to_be_trusted_are_told_of(tmp_path: Path):
    with pytest.warns(UserWarning, match="Set its keep_last to 4 or save less often"):
        fit_with_guard(tmp_path, DivergenceGuard(), FaultInjector(), every=3)


class NotSaved(Classifier):
    """A running mean of the loss that no checkpoint holds."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(0.0), persistent=False)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = super().training_step(batch, batch_idx)
        self.mean.mul_(0.9).add_(0.1 * loss.detach())
        return loss + 0 * self.mean


@pytest.mark.slow
def test_a_buffer_that_no_checkpoint_holds_does_not_stay_broken(tmp_path: Path):
    guard = DivergenceGuard(every_n_steps=10)
    fit = fit_with_guard(tmp_path, guard, spike_at(42), kind=NotSaved)
    assert guard.rollbacks == 1
    assert fit.lightning_module.mean.isfinite()


@pytest.mark.slow
def test_the_learning_rate_stays_lower(tmp_path: Path):
    guard = DivergenceGuard(lr_factor=0.5)
    fit = fit_with_guard(tmp_path, guard, spike_at(20, 21, 22, 40, 41, 42))
    assert guard.state_dict()["lr_factor"] == 0.25
    assert fit.optimizers[0].param_groups[0]["lr"] == 0.01  # a scheduler's own
    second_guard = DivergenceGuard(lr_factor=0.5)
    fit_with_guard(tmp_path, second_guard, FaultInjector(), max_epochs=2)
    assert second_guard.state_dict()["lr_factor"] == 0.25
