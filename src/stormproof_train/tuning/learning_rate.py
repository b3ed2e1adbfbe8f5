"""``tune=lr``: a learning rate to begin with, by Lightning's finder with several first weights."""

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
"""The schedule of the measurement: one of the run's own would set rates and momentum besides."""


@dataclasses.dataclass(frozen=True)
class LearningRate:
    """A learning rate to begin with, and by what.

    Attributes:
        rate: the optimizer's ``lr``, of two significant digits; the highest, where a schedule varies it.
        readings: by the seed of the first weights.
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
    """Trains with a growing learning rate, from several first weights, and reads where the loss falls.

    Lightning's finder trains, and the reading of its losses is ours (:func:`~.range_test.read`): what it suggests
    itself is where the loss, averaged over half of the steps, falls fastest by the rate rather than by its logarithm.
    That is noise at the lowest rates: of AdamW on the digits, for which ours gives 0.0017, five seeds got 3e-7 to 1e-5
    with rates from 1e-8 on, and 2e-5 to 2e-4 from 1e-6 on.

    Args:
        plan: the run's.
        data: its data module.
        spec: of the data.
        loss: the loss to build.
        seeds: how many first weights and orders of the data, from the run's seed on; at least 1.
        lowest: the learning rate of the first step, above 0.
        highest: that of the last, above ``lowest``.
        steps: optimizer steps of each training, at least 20.

    Raises:
        UserError: if the optimizer has no learning rate, or no training came to a lower loss.
    """
    if "lr" not in plan.optimizer.arguments():
        raise UserError(f"tune=lr: {plan.optimizer.path} takes no argument lr, and there is nothing to find")
    plan = dataclasses.replace(plan, scheduler=bind({"_target_": CONSTANT_SCHEDULE}, "scheduler"))
    if isinstance(data, SplitDataModule):
        data.load_spec()  # the split is the run's; what is shuffled after it is each seed's
    readings = {}
    for seed in [(plan.seed + offset) % 2**32 for offset in range(seeds)]:
        pl.seed_everything(seed, workers=True, verbose=False)
        if isinstance(data, SplitDataModule):
            data.seed = seed
        readings[seed] = read_range_test(*_run_range_test(plan, data, spec, loss, lowest, highest, steps))
    rate = combine_readings(list(readings.values()))
    if rate is None:
        raise UserError(
            f"tune=lr: with none of {seeds} first weights did any rate from {lowest:g} to {highest:g} lower the loss "
            "by more than its noise: see that the data can be learnt, try another initialization or a larger "
            "data.batch_size, or set optimizer.lr by hand"
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
    """The learning rates of one training, and the mean loss of the batches at each."""
    task = build_task(plan, data, spec, loss)
    recording_loss = _RecordingLoss(task.loss, lambda: task.trainer.optimizers[0].param_groups[0]["lr"])
    task.loss = recording_loss
    with TemporaryDirectory() as folder:  # the finder puts a checkpoint there
        tuner = Tuner(build_measuring_trainer(plan, folder))
        # Its bar cannot be turned off; a warning that goes with it comes again when the run is trained. It would stop
        # where a loss is above four times the lowest, which of a loss below 0 is at once.
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
    by_rate: dict[float, list[float]] = {}  # several batches at one, where a step accumulates them
    for rate, value in recording_loss.pairs:
        by_rate.setdefault(rate, []).append(value)
    return list(by_rate), [statistics.fmean(values) for values in by_rate.values()]


class _RecordingLoss(nn.Module):
    """A loss that takes down what it gives in training, and at which learning rate."""

    def __init__(self, loss: Loss, get_rate: Callable[[], float]) -> None:
        super().__init__()
        self.loss = loss
        self.get_rate = get_rate
        self.pairs: list[tuple[float, float]] = []

    def forward(self, outputs: torch.Tensor, target: torch.Tensor) -> Any:
        loss = self.loss(outputs, target)
        self.pairs.append((float(self.get_rate()), loss.item()))
        return loss
