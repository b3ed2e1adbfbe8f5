"""Implements ``tune=batch_size``: finds the smallest batch size with close to the highest throughput."""

from __future__ import annotations

import dataclasses
import math
import multiprocessing
import signal
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any

import pytorch_lightning as pl

from stormproof import GradientNormMonitor
from stormproof.gradients.measurement import noise_scale_of_usual_batches
from stormproof.gradients.noise_scale import MIN_ESTIMATES
from stormproof_train.config.plan import Plan, read_plan
from stormproof_train.data.split_data import SplitDataModule
from stormproof_train.error_messages import describe_error
from stormproof_train.errors import ExitCode, RunError, UserError
from stormproof_train.lightning_output import suppress_lightning_output
from stormproof_train.tuning.measuring_trainer import build_measuring_trainer
from stormproof_train.tuning.throughput import Throughput, build_with_batch_size, measure_throughputs


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


@dataclass(frozen=True)
class BatchSize:
    """The result of ``tune=batch_size``.

    Attributes:
        size: Samples per optimizer step.
        measurements: Throughput of each batch size that was tried, in ascending order.
        stop_reason: Reason why no larger batch size was tried.
        noise: Gradient noise scale with batches of ``size``, or the reason why it is unknown.
    """

    size: int
    measurements: Sequence[Throughput]
    stop_reason: str
    noise: NoiseMeasurement | str


def find_batch_size(
    plan: Plan, config: Mapping[str, Any], data: pl.LightningDataModule, smallest: int = 8, steps_an_epoch: int = 10
) -> BatchSize:
    """Measures doubled batch sizes in a subprocess and applies :func:`choose_batch_size`.

    If the process runs out of memory, only the size that it was measuring is lost. The process also
    measures the noise scale with the chosen size. Lightning's ``scale_batch_size`` is not used for four reasons:

    - It finds the largest batch that fits, not the fastest.
    - At its ``max_val`` it returns that size without having tried it.
    - On a CPU it may continue until the system kills the process.
    - It does not measure throughput.

    Args:
        plan: Plan of the run.
        config: Plain values that the plan was read from. The subprocess reads them again.
        data: Data module of the run.
        smallest: Smallest batch size to try. Must be at least 1. Rounded up so that accumulated batches are equal.
        steps_an_epoch: Minimum number of optimizer steps per epoch. Must be at least 1. With only a few steps per
            epoch, the fastest run learns little from each sample.

    Raises:
        UserError: If the data module has no ``batch_size``, does not expose its number of samples, or has too few.
        RunError: If training failed, or the process was killed at the smallest size.
    """
    if "batch_size" not in plan.data.arguments():
        raise UserError(
            f"tune=batch_size: {plan.data.path} has no argument batch_size: add one and use it in the data loaders"
        )
    if isinstance(data, SplitDataModule):
        data.batch_size = 1  # a batch size above the number of samples, unknown so far, would be rejected
    data.prepare_data()
    data.setup("fit")
    try:
        samples = len(data.train_dataloader().dataset)
    except (AttributeError, TypeError) as error:
        raise UserError(
            f"tune=batch_size: the training dataset of {plan.data.path} has no length, so the largest batch size is "
            "unknown: set data.batch_size by hand"
        ) from error
    largest = samples // steps_an_epoch
    sizes = candidate_sizes(smallest, largest, int(plan.trainer.kwargs.get("accumulate_grad_batches", 1)))
    if not sizes:
        raise UserError(
            f"tune=batch_size: {samples} training samples are too few for a batch of at least {smallest} and "
            f"{steps_an_epoch} steps per epoch: set data.batch_size by hand"
        )
    default_reason = f"an epoch of {samples:,} training samples must have {steps_an_epoch} steps: at most {largest:,}"
    measurements, reason, noise = _measure_in_subprocess(config, sizes, samples)
    return BatchSize(choose_batch_size(measurements).batch_size, measurements, reason or default_reason, noise)


def candidate_sizes(smallest: int, largest: int, accumulate_grad_batches: int) -> list[int]:
    """Returns batch sizes that are powers of two times the number of accumulated batches.

    Example:
        >>> candidate_sizes(8, 100, accumulate_grad_batches=1), candidate_sizes(8, 100, accumulate_grad_batches=3)
        ([8, 16, 32, 64], [12, 24, 48, 96])
    """
    sizes = (accumulate_grad_batches * 2**power for power in range(largest.bit_length()))
    return [size for size in sizes if smallest <= size <= largest]


def choose_batch_size(measurements: Sequence[Throughput], gain: float = 0.1) -> Throughput:
    """Returns the smallest batch whose throughput is within ``gain`` of the highest throughput.

    Args:
        measurements: At least one measurement, in ascending order of the batch size.
        gain: Relative gain in throughput that justifies a larger batch. Must be positive.

    Example:
        >>> measurements = [Throughput(8, 100.0, 0), Throughput(16, 190.0, 0), Throughput(32, 205.0, 0)]
        >>> choose_batch_size(measurements).batch_size
        16
    """
    best = max(measurement.samples_per_second for measurement in measurements)
    return next(measurement for measurement in measurements if best <= (1 + gain) * measurement.samples_per_second)


@dataclass(frozen=True)
class _Failure:
    message: str
    code: ExitCode


@dataclass(frozen=True)
class _Noise:
    result: NoiseMeasurement | str


def _measure_in_subprocess(
    config: Mapping[str, Any], sizes: Sequence[int], samples: int
) -> tuple[list[Throughput], str | None, NoiseMeasurement | str]:
    """Returns the throughputs, the reason why no larger size was tried, and the noise scale.

    The reason is None if all sizes were measured.
    """
    context = multiprocessing.get_context("spawn")  # fork would copy threads and an initialized CUDA context
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_measure, args=(dict(config), sizes, samples, sender))
    process.start()
    sender.close()
    measurements: list[Throughput] = []
    reason: str | None = None
    noise: NoiseMeasurement | str = "the process ended before it was measured"
    try:
        while True:
            match receiver.recv():
                case Throughput() as measurement:
                    measurements.append(measurement)
                case _Noise(noise):
                    pass
                case _Failure() as failure:
                    raise (UserError if failure.code is ExitCode.USER_MISTAKE else RunError)(failure.message)
                case stop_reason:
                    reason = str(stop_reason)
    except EOFError:
        process.join()
    finally:
        process.kill()
        process.join()
        receiver.close()
    if reason is None and len(measurements) < len(sizes):
        reason = f"the system killed the process that tried {sizes[len(measurements)]} (exit code {process.exitcode})"
    if not measurements:
        raise RunError(
            f"tune=batch_size: {reason}. This is the smallest batch size: use a smaller model or a device with more "
            "memory"
        )
    return measurements, reason, noise


def _measure(config: Mapping[str, Any], sizes: Sequence[int], samples: int, sender: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches both processes, and the parent kills this one
    try:
        suppress_lightning_output()
        plan = read_plan(config)
        measurements: list[Throughput] = []
        for result in measure_throughputs(plan, sizes, samples):
            sender.send(result)
            if isinstance(result, Throughput):
                measurements.append(result)
        if measurements:
            sender.send(_Noise(_measure_noise(plan, choose_batch_size(measurements).batch_size, samples)))
    except Exception as error:  # noqa: BLE001 (the parent process reports it)
        message, code = describe_error(error)
        if code is ExitCode.FAILED:
            traceback.print_exception(error)
        sender.send(_Failure(message, code))


def _measure_noise(plan: Plan, size: int, samples: int) -> NoiseMeasurement | str:
    """Returns the noise scale, or a sentence if it cannot be measured. The throughputs are useful without it."""
    try:
        return measure_noise_scale(plan, size, samples)
    except Exception as error:  # noqa: BLE001 (the message is shown with the result)
        return describe_error(error)[0]
