"""``tune=batch_size``: the smallest batch that trains about as fast as any."""

from __future__ import annotations

import multiprocessing
import signal
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import pytorch_lightning as pl

from stormproof_train.config.plan import Plan, read_plan
from stormproof_train.data.split_data import SplitDataModule
from stormproof_train.error_messages import describe_error
from stormproof_train.errors import ExitCode, RunError, UserError
from stormproof_train.lightning_output import suppress_lightning_output
from stormproof_train.tuning.throughput import Throughput, measure_throughputs


@dataclass(frozen=True)
class BatchSize:
    """A batch size to begin with, and by what.

    Attributes:
        size: samples of an optimizer step.
        measurements: the sizes that were tried, the smallest first.
        stop_reason: why no larger one was tried.
    """

    size: int
    measurements: Sequence[Throughput]
    stop_reason: str


def find_batch_size(
    plan: Plan, config: Mapping[str, Any], data: pl.LightningDataModule, smallest: int = 8, steps_an_epoch: int = 10
) -> BatchSize:
    """Trains with twice the batch again and again, in a process of its own, and chooses by :func:`choose_batch_size`.

    A process that the system ends for its memory, or that a GPU's memory does not hold, loses only the size that it
    was at. Lightning's ``scale_batch_size`` is not used: it looks for the largest batch that fits and for nothing else,
    where it stops at its ``max_val`` it gives that size without having tried it, on a CPU it may go on until the system
    ends the process, and to tell how fast a batch is it has to be trained anyway.

    Args:
        plan: the run's.
        config: what it was read from, as plain values; the other process reads it again.
        data: the run's data module.
        smallest: the first batch size, where accumulated batches share it equally; at least 1.
        steps_an_epoch: what the largest leaves of an epoch, at least 1: with a few steps in it the fastest training
            learns little from each sample.

    Raises:
        UserError: if the data module takes no batch size, or does not tell its samples, or has too few.
        RunError: if the training failed, or the system ended it at the first size.
    """
    if "batch_size" not in plan.data.arguments():
        raise UserError(
            f"tune=batch_size: {plan.data.path} takes no argument batch_size: give it one, which its loaders use"
        )
    if isinstance(data, SplitDataModule):
        data.batch_size = 1  # it refuses one of more samples than there are, which this is to tell
    data.prepare_data()
    data.setup("fit")
    try:
        samples = len(data.train_dataloader().dataset)
    except (AttributeError, TypeError) as error:
        raise UserError(f"tune=batch_size: {plan.data.path} does not tell how many training samples it has") from error
    largest = samples // steps_an_epoch
    sizes = candidate_sizes(smallest, largest, int(plan.trainer.kwargs.get("accumulate_grad_batches", 1)))
    if not sizes:
        raise UserError(
            f"tune=batch_size: {samples} training samples leave no batch from {smallest} on that has {steps_an_epoch} "
            "steps an epoch: set data.batch_size by hand"
        )
    default_reason = f"an epoch of {samples:,} training samples keeps {steps_an_epoch} steps: no more than {largest:,}"
    measurements, reason = _measure_in_subprocess(config, sizes, samples)
    return BatchSize(choose_batch_size(measurements).batch_size, measurements, reason or default_reason)


def candidate_sizes(smallest: int, largest: int, accumulate_grad_batches: int) -> list[int]:
    """Powers of two times the batches that a step accumulates, so that these share it equally.

    Example:
        >>> candidate_sizes(8, 100, accumulate_grad_batches=1), candidate_sizes(8, 100, accumulate_grad_batches=3)
        ([8, 16, 32, 64], [12, 24, 48, 96])
    """
    sizes = (accumulate_grad_batches * 2**power for power in range(largest.bit_length()))
    return [size for size in sizes if smallest <= size <= largest]


def choose_batch_size(measurements: Sequence[Throughput], gain: float = 0.1) -> Throughput:
    """The smallest batch than which no larger one takes over ``gain`` more samples in a second.

    Args:
        measurements: at least one, the smallest batch first.
        gain: a share, above 0.

    Example:
        >>> told = [Throughput(8, 100.0, 0), Throughput(16, 190.0, 0), Throughput(32, 205.0, 0)]
        >>> choose_batch_size(told).batch_size
        16
    """
    best = max(measurement.samples_per_second for measurement in measurements)
    return next(measurement for measurement in measurements if best <= (1 + gain) * measurement.samples_per_second)


@dataclass(frozen=True)
class _Failure:
    message: str
    code: ExitCode


def _measure_in_subprocess(
    config: Mapping[str, Any], sizes: Sequence[int], samples: int
) -> tuple[list[Throughput], str | None]:
    """What a process of its own measured, and why it ended before the last size, if it did."""
    context = multiprocessing.get_context("spawn")  # a fork would inherit threads, and CUDA where it is in use
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_measure, args=(dict(config), sizes, samples, sender))
    process.start()
    sender.close()
    measurements: list[Throughput] = []
    try:
        while True:
            result = receiver.recv()
            if isinstance(result, _Failure):
                failure = UserError if result.code is ExitCode.USER_MISTAKE else RunError
                raise failure(result.message)
            if not isinstance(result, Throughput):
                return measurements, result
            measurements.append(result)
    except EOFError:
        process.join()
    finally:
        process.kill()
        process.join()
        receiver.close()
    if len(measurements) == len(sizes):
        return measurements, None
    reason = f"the system ended the process that tried {sizes[len(measurements)]} (code {process.exitcode})"
    if not measurements:
        raise RunError(f"tune=batch_size: {reason}, the smallest: it may need more memory than there is")
    return measurements, reason


def _measure(config: Mapping[str, Any], sizes: Sequence[int], samples: int, sender: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches both, and the one that waits ends this one
    try:
        suppress_lightning_output()
        for measurement in measure_throughputs(read_plan(config), sizes, samples):
            sender.send(measurement)
    except Exception as error:  # noqa: BLE001 (told by the process that waits)
        message, code = describe_error(error)
        if code is ExitCode.FAILED:
            traceback.print_exception(error)
        sender.send(_Failure(message, code))
