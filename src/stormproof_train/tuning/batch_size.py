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
from stormproof_train.data.split_data import SplitData
from stormproof_train.error_messages import sentence_for
from stormproof_train.errors import ExitCode, RunError, UserError
from stormproof_train.lightning_output import quiet_lightning
from stormproof_train.tuning.throughput import Throughput, throughputs


@dataclass(frozen=True)
class BatchSize:
    """A batch size to begin with, and by what.

    Attributes:
        size: samples of an optimizer step.
        measured: the sizes that were tried, the smallest first.
        ended: why no larger one was tried.
    """

    size: int
    measured: Sequence[Throughput]
    ended: str


def find_batch_size(
    plan: Plan, config: Mapping[str, Any], data: pl.LightningDataModule, smallest: int = 8, steps_an_epoch: int = 10
) -> BatchSize:
    """Trains with twice the batch again and again, in a process of its own, and chooses by :func:`smallest_as_fast`.

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
    if isinstance(data, SplitData):
        data.batch_size = 1  # it refuses one of more samples than there are, which this is to tell
    data.prepare_data()
    data.setup("fit")
    try:
        samples = len(data.train_dataloader().dataset)
    except (AttributeError, TypeError) as error:
        raise UserError(f"tune=batch_size: {plan.data.path} does not tell how many training samples it has") from error
    largest = samples // steps_an_epoch
    sizes = sizes_to_try(smallest, largest, int(plan.trainer.given.get("accumulate_grad_batches", 1)))
    if not sizes:
        raise UserError(
            f"tune=batch_size: {samples} training samples leave no batch from {smallest} on that has {steps_an_epoch} "
            "steps an epoch: set data.batch_size by hand"
        )
    ended = f"an epoch of {samples:,} training samples keeps {steps_an_epoch} steps: no more than {largest:,}"
    measured, reason = _measured_apart(config, sizes, samples)
    return BatchSize(smallest_as_fast(measured).batch_size, measured, reason or ended)


def sizes_to_try(smallest: int, largest: int, accumulated: int) -> list[int]:
    """Powers of two times the batches that a step accumulates, so that these share it equally.

    Example:
        >>> sizes_to_try(8, 100, accumulated=1), sizes_to_try(8, 100, accumulated=3)
        ([8, 16, 32, 64], [12, 24, 48, 96])
    """
    doubled = (accumulated * 2**power for power in range(largest.bit_length()))
    return [size for size in doubled if smallest <= size <= largest]


def smallest_as_fast(measured: Sequence[Throughput], gain: float = 0.1) -> Throughput:
    """The smallest batch than which no larger one takes over ``gain`` more samples in a second.

    Args:
        measured: at least one, the smallest batch first.
        gain: a share, above 0.

    Example:
        >>> told = [Throughput(8, 100.0, 0), Throughput(16, 190.0, 0), Throughput(32, 205.0, 0)]
        >>> smallest_as_fast(told).batch_size
        16
    """
    best = max(each.samples_per_second for each in measured)
    return next(each for each in measured if best <= (1 + gain) * each.samples_per_second)


@dataclass(frozen=True)
class _Failed:
    sentence: str
    code: ExitCode


def _measured_apart(
    config: Mapping[str, Any], sizes: Sequence[int], samples: int
) -> tuple[list[Throughput], str | None]:
    """What a process of its own measured, and why it ended before the last size, if it did."""
    context = multiprocessing.get_context("spawn")  # a fork would inherit threads, and CUDA where it is in use
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_measure, args=(dict(config), sizes, samples, sender))
    process.start()
    sender.close()
    measured: list[Throughput] = []
    try:
        while True:
            told = receiver.recv()
            if isinstance(told, _Failed):
                failure = UserError if told.code is ExitCode.USER_MISTAKE else RunError
                raise failure(told.sentence)
            if not isinstance(told, Throughput):
                return measured, told
            measured.append(told)
    except EOFError:
        process.join()
    finally:
        process.kill()
        process.join()
        receiver.close()
    if len(measured) == len(sizes):
        return measured, None
    ended = f"the system ended the process that tried {sizes[len(measured)]} (code {process.exitcode})"
    if not measured:
        raise RunError(f"tune=batch_size: {ended}, the smallest: it may need more memory than there is")
    return measured, ended


def _measure(config: Mapping[str, Any], sizes: Sequence[int], samples: int, sender: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches both, and the one that waits ends this one
    try:
        quiet_lightning()
        for told in throughputs(read_plan(config), sizes, samples):
            sender.send(told)
    except Exception as error:  # noqa: BLE001 (told by the process that waits)
        sentence, code = sentence_for(error)
        if code is ExitCode.FAILED:
            traceback.print_exception(error)
        sender.send(_Failed(sentence, code))
