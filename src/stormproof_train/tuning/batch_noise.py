"""Measures the gradient noise scale in a short training run."""

from __future__ import annotations

import dataclasses
import math
from statistics import fmean
from tempfile import TemporaryDirectory

from stormproof import GradientNormMonitor
from stormproof.gradients.measurement import noise_scale_of_usual_batches
from stormproof.gradients.noise_scale import MIN_ESTIMATES
from stormproof_train.config.plan import Plan
from stormproof_train.tuning.measuring_trainer import build_measuring_trainer
from stormproof_train.tuning.throughput import build_with_batch_size


@dataclasses.dataclass(frozen=True)
class NoiseMeasurement:
    """Gradient noise scale after some steps.

    Attributes:
        noise_scale: Noise scale in samples. Infinite if the mean gradient is too small to be estimated.
        batch_size: Samples per optimizer step.
        steps: Number of steps trained.
    """

    noise_scale: float
    batch_size: int
    steps: int


def measure_noise_scale(
    plan: Plan, size: int, training_samples: int, steps: int = 100, seconds: int = 30
) -> NoiseMeasurement | str:
    """Trains a new network and returns the noise scale of its last steps, or the reason why it cannot be estimated.

    Each step accumulates at least two smaller batches and compares their gradients. Batch norm therefore uses smaller
    batches.

    Args:
        plan: Plan of a run on one device.
        size: Samples per optimizer step. Must be divisible by ``accumulate_grad_batches``, or by 2 if that is 1.
        training_samples: Number of training samples.
        steps: Number of steps. Must be positive.
        seconds: Time after which training ends early, in seconds.
    """
    accumulated_batches = max(int(plan.trainer.kwargs.get("accumulate_grad_batches", 1)), 2)
    arguments = {**plan.trainer.kwargs, "accumulate_grad_batches": accumulated_batches}
    plan = dataclasses.replace(plan, trainer=dataclasses.replace(plan.trainer, kwargs=arguments))
    data, task = build_with_batch_size(plan, size)
    monitor = GradientNormMonitor(every_n_steps=1, table=False)
    with TemporaryDirectory() as folder:
        trainer = build_measuring_trainer(
            plan,
            folder,
            [monitor],
            max_steps=steps,
            max_time={"seconds": seconds},
            limit_train_batches=training_samples // size * accumulated_batches,
        )
        trainer.fit(task, datamodule=data)
    estimates = [measurement.noise for measurement in monitor.history if measurement.noise is not None]
    scale, batch_size = noise_scale_of_usual_batches(monitor.history)
    if batch_size is None or len(estimates) < MIN_ESTIMATES:
        return f"{len(estimates)} of {trainer.global_step} steps could be measured, and {MIN_ESTIMATES} are needed"
    if scale is None and fmean(estimate.signal for estimate in estimates) <= 0:
        scale = math.inf
    if scale is None:
        return "the gradients of two halves of a batch do not differ"
    return NoiseMeasurement(scale, batch_size, trainer.global_step)
