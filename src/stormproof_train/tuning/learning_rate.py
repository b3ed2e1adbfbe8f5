"""Implements ``tune=lr``: runs Lightning's learning-rate finder with several initial weights."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import statistics
from collections.abc import Callable
from tempfile import TemporaryDirectory
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.tuner.tuning import Tuner
from torch import nn

from stormproof_train.build_task import build_task
from stormproof_train.config.plan import Plan
from stormproof_train.config.signature_binding import Target, bind
from stormproof_train.data.spec import DataSpec
from stormproof_train.data.split_data import SplitDataModule
from stormproof_train.errors import UserError
from stormproof_train.losses import Loss
from stormproof_train.schedulers import none
from stormproof_train.tuning.measuring_trainer import build_measuring_trainer
from stormproof_train.tuning.range_test import Reading, combine_readings, read_range_test

CONSTANT_SCHEDULE = f"{none.__module__}.{none.__name__}"
"""Schedule of the measurement. The run's schedule would change learning rate and momentum too."""


@dataclasses.dataclass(frozen=True)
class LearningRate:
    """The result of ``tune=lr``.

    Attributes:
        rate: The optimizer's ``lr``, rounded to two significant digits. With a schedule, its maximum.
        readings: Result of each range test, by the seed of its initial weights.
    """

    rate: float
    readings: dict[int, Reading]


def find_learning_rate(
    plan: Plan,
    data: pl.LightningDataModule,
    spec: DataSpec,
    loss: Target,
    seeds: int = 5,
    lowest: float = 1e-6,
    highest: float = 10.0,
    steps: int = 100,
) -> LearningRate:
    """Runs range tests with several initial weights and combines them to a learning rate.

    Training uses Lightning's finder, but its losses are interpreted by
    :func:`stormproof_train.tuning.range_test.read_range_test`. The finder's own suggestion is the steepest point of the
    loss by the rate, not by its logarithm, after averaging over half of the steps. At the lowest rates that is noise.
    For AdamW on the digits, five seeds suggested 3e-7 to 1e-5 in a test from 1e-8 on, and 2e-5 to 2e-4 in a test from
    1e-6 on. This function returns 0.0017 there.

    Args:
        plan: Plan of the run.
        data: Data module of the run.
        spec: Specification of the data.
        loss: Loss to build.
        seeds: Number of initial weights and data orders, starting at the run's seed. Must be at least 1.
        lowest: Learning rate of the first step. Must be positive.
        highest: Learning rate of the last step. Must be above ``lowest``.
        steps: Optimizer steps of each range test. Must be at least 20.

    Raises:
        UserError: If the optimizer has no learning rate, or no range test lowered the loss.
    """
    if "lr" not in plan.optimizer.arguments():
        raise UserError(f"tune=lr: {plan.optimizer.path} has no argument lr to tune")
    plan = dataclasses.replace(plan, scheduler=bind({"_target_": CONSTANT_SCHEDULE}, "scheduler"))
    if isinstance(data, SplitDataModule):
        data.load_spec()  # splits the data by the run's seed, shuffling uses the seed of each range test
    readings = {}
    for seed in [(plan.seed + offset) % 2**32 for offset in range(seeds)]:
        pl.seed_everything(seed, workers=True, verbose=False)
        if isinstance(data, SplitDataModule):
            data.seed = seed
        readings[seed] = read_range_test(*_run_range_test(plan, data, spec, loss, lowest, highest, steps))
    rate = combine_readings(list(readings.values()))
    if rate is None:
        raise UserError(
            f"tune=lr: no learning rate from {lowest:g} to {highest:g} lowered the loss by more than its noise with "
            f"any of {seeds} initial weights: check the data, try another initialization or a larger data.batch_size, "
            "or set optimizer.lr by hand"
        )
    return LearningRate(float(f"{rate:.2g}"), readings)


def _run_range_test(
    plan: Plan,
    data: pl.LightningDataModule,
    spec: DataSpec,
    loss: Target,
    lowest: float,
    highest: float,
    steps: int,
) -> tuple[list[float], list[float]]:
    """Returns the learning rates of one range test and the mean batch loss at each of them."""
    task = build_task(plan, data, spec, loss)
    recording_loss = _RecordingLoss(task.loss, lambda: task.trainer.optimizers[0].param_groups[0]["lr"])
    task.loss = recording_loss
    with TemporaryDirectory() as folder:  # for the finder's checkpoint
        tuner = Tuner(build_measuring_trainer(plan, folder))
        # The finder's progress bar cannot be disabled. A warning that is hidden here is shown again in training.
        # Early stopping is disabled: its limit of four times the lowest loss fails for negative losses.
        with contextlib.redirect_stderr(io.StringIO()):
            tuner.lr_find(
                task,
                datamodule=data,
                min_lr=lowest,
                max_lr=highest,
                num_training=steps,
                early_stop_threshold=None,
                update_attr=False,
            )
    by_rate: dict[float, list[float]] = {}  # accumulated batches share a rate
    for rate, value in recording_loss.pairs:
        by_rate.setdefault(rate, []).append(value)
    return list(by_rate), [statistics.fmean(values) for values in by_rate.values()]


class _RecordingLoss(nn.Module):
    """Records the training losses of a loss module with their learning rates."""

    def __init__(self, loss: Loss, get_rate: Callable[[], float]) -> None:
        super().__init__()
        self.loss = loss
        self.get_rate = get_rate
        self.pairs: list[tuple[float, float]] = []

    def forward(self, outputs: torch.Tensor, target: torch.Tensor) -> Any:
        loss = self.loss(outputs, target)
        self.pairs.append((float(self.get_rate()), loss.item()))
        return loss
