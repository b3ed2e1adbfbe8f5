"""Implements ``tune=lr``: runs Lightning's learning-rate finder with several initial weights."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.tuner.tuning import Tuner
from scipy.ndimage import gaussian_filter1d
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

    Training uses Lightning's finder, but its losses are interpreted by :func:`read_range_test`. The finder's own
    suggestion is the steepest point of the loss by the rate, not by its logarithm, after averaging over half of the
    steps. At the lowest rates that is noise. For AdamW on the digits, five seeds suggested 3e-7 to 1e-5 in a test from
    1e-8 on, and 2e-5 to 2e-4 in a test from 1e-6 on. This function returns 0.0017 there.

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


_SMOOTHING_SIGMA = 3.0
"""Standard deviation of the Gaussian that smooths the losses, in steps."""

_DIVERGENCE_MARGIN = 10.0
"""Minimum ratio between the lowest rate that diverged and the suggestion. A few steps per rate show only immediate
divergence.
"""


@dataclass(frozen=True)
class Reading:
    """The result of one range test.

    Attributes:
        suggested: Learning rate at which the loss is halfway between its start and its minimum. None if the loss did
            not fall by more than its noise.
        diverged: Lowest rate after the minimum at which the loss exceeded its start. None if it never did.
    """

    suggested: float | None
    diverged: float | None


def read_range_test(rates: Sequence[float], losses: Sequence[float]) -> Reading:
    r"""Interprets the loss as a function of the learning rate.

    The losses are smoothed with a Gaussian, which does not shift them as a running mean does. The suggestion is the
    first rate from which the loss stays below the midpoint of its start and its minimum, up to the minimum. For a
    smooth loss that is close to the steepest point. For noisy batches, the level is more robust than the slope. On the
    diabetes data, the steepest points of five seeds differed by a factor of 240, the midpoints by a factor of 1.6. The
    first fifth of the rates, too low to change the loss, gives its start and its noise.

    Args:
        rates: Learning rates, increasing by a constant factor.
        losses: Training batch loss at each rate. The first non-finite loss and all later ones are ignored.

    Example:
        >>> rates = [10 ** (k / 10 - 6) for k in range(70)]
        >>> losses = [1 - 1 / (1 + (1e-3 / rate) ** 2) + (rate > 0.5) * 9 for rate in rates]
        >>> reading = read_range_test(rates, losses)
        >>> round(reading.suggested, 3), round(reading.diverged, 1)
        (0.001, 0.2)

    References:
        Smith, Cyclical Learning Rates for Training Neural Networks, 2017, section 3.3.
    """
    num_finite = next((index for index, loss in enumerate(losses) if not math.isfinite(loss)), len(losses))
    non_finite_rate = rates[num_finite] if num_finite < len(rates) else None
    num_initial = len(rates) // 5
    if num_finite < 2 * num_initial:
        return Reading(None, non_finite_rate)
    finite_losses = np.asarray(losses[:num_finite], dtype=float)
    smooth = gaussian_filter1d(finite_losses, _SMOOTHING_SIGMA, mode="nearest")
    start, noise = float(np.mean(finite_losses[:num_initial])), float(np.std(finite_losses[:num_initial]))
    lowest_index = int(np.argmin(smooth))
    above_start = np.flatnonzero(smooth[lowest_index:] > start)
    diverged = rates[lowest_index + int(above_start[0])] if len(above_start) else non_finite_rate
    if start - smooth[lowest_index] <= noise:
        return Reading(None, diverged)
    above_half = np.flatnonzero(smooth[:lowest_index] > (start + smooth[lowest_index]) / 2)
    return Reading(rates[int(above_half[-1]) + 1], diverged)


def combine_readings(readings: Sequence[Reading]) -> float | None:
    """Returns the geometric median of the suggestions, at most a tenth of the lowest rate that diverged.

    Returns None if no reading has a suggestion.

    Example:
        >>> combine_readings([Reading(0.01, 1.0), Reading(None, None), Reading(0.02, 0.5), Reading(0.04, None)])
        0.02
        >>> combine_readings([Reading(0.01, 0.05)])
        0.005
    """
    suggestions = [reading.suggested for reading in readings if reading.suggested is not None]
    if not suggestions:
        return None
    limits = [reading.diverged / _DIVERGENCE_MARGIN for reading in readings if reading.diverged is not None]
    return min([float(np.exp(np.median(np.log(suggestions)))), *limits])
