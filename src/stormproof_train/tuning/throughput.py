"""How many samples a training takes in a second, by the size of its batches, and what memory it needs for that."""

from __future__ import annotations

import dataclasses
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from tempfile import TemporaryDirectory
from typing import Any

import psutil
import pytorch_lightning as pl
import torch
from pytorch_lightning import Callback
from pytorch_lightning.utilities.memory import garbage_collection_cuda, is_oom_error

from stormproof_train.build_task import build_task
from stormproof_train.config.plan import Plan
from stormproof_train.data.spec import spec_of
from stormproof_train.tuning.measuring_trainer import measuring_trainer

WARM_UP = 3
"""Batches before the clock starts: the first ones choose kernels, start workers and get memory."""


@dataclasses.dataclass(frozen=True)
class Throughput:
    """What one batch size came to.

    Attributes:
        batch_size: samples of an optimizer step.
        samples_per_second: of training, waiting for data included.
        memory: the most that was in use so far, in bytes: of the GPU, or else of the process.
    """

    batch_size: int
    samples_per_second: float
    memory: int


def throughputs(
    plan: Plan, sizes: Sequence[int], training_samples: int, seconds: float = 1.0, share_of_free: float = 0.5
) -> Iterator[Throughput | str]:
    """Trains with one batch size after the other; where it ends before the last, a sentence says why.

    Args:
        plan: the run's, of one device.
        sizes: batch sizes, rising by at most a factor of 2.
        training_samples: of the data.
        seconds: how long each is timed, above 0.
        share_of_free: of the memory that is free at first, how much may be taken, in (0, 1].
    """
    free, began = psutil.virtual_memory().available, _peak_of_process()
    for place, size in enumerate(sizes):
        try:
            yield _throughput(plan, size, training_samples, seconds)
        except (RuntimeError, MemoryError) as error:
            if not (isinstance(error, MemoryError) or is_oom_error(error)):
                raise
            yield f"{size} does not fit into memory"
            return
        taken = _peak_of_process() - began
        if place + 1 < len(sizes) and 2 * taken > share_of_free * free:
            yield (
                f"{sizes[place + 1]} might take {2 * taken / 2**30:.1f} GiB, more than {share_of_free:.0%} of the "
                f"{free / 2**30:.1f} GiB that were free"
            )
            return


def _throughput(plan: Plan, size: int, training_samples: int, seconds: float) -> Throughput:
    pl.seed_everything(plan.seed, workers=True, verbose=False)
    given = {**plan.data.given, "batch_size": size}
    data = dataclasses.replace(plan.data, given=given).build(seed=plan.seed)
    spec = spec_of(data)
    task = build_task(plan, data, spec, plan.loss_for(spec.task))
    clock = _Clock(seconds)
    with TemporaryDirectory() as folder:
        accumulated = int(plan.trainer.given.get("accumulate_grad_batches", 1))
        # Whole batches only: a last one of other size tells of no size, and batch norm may refuse it.
        batches = training_samples // size * accumulated
        trainer = measuring_trainer(plan, folder, [clock], limit_train_batches=batches)
        if trainer.strategy.root_device.type == "cuda":
            garbage_collection_cuda()
            torch.cuda.reset_peak_memory_stats(trainer.strategy.root_device)
        trainer.fit(task, datamodule=data)
        on_gpu = trainer.strategy.root_device.type == "cuda"
        memory = torch.cuda.max_memory_allocated(trainer.strategy.root_device) if on_gpu else _peak_of_process()
    return Throughput(size, clock.samples / clock.elapsed, memory)


class _Clock(Callback):
    """Counts samples for some seconds, after a few batches to warm up, and ends the training then."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.samples = 0
        self.elapsed = 0.0
        self._batches = 0
        self._start = 0.0

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._batches += 1
        if self._batches < WARM_UP:
            return
        if self._batches == WARM_UP:
            self._start = _now(pl_module.device)
            return
        self.samples += len(batch[0])
        if time.perf_counter() - self._start >= self.seconds:
            self.elapsed = _now(pl_module.device) - self._start
            trainer.should_stop = True


def _now(device: torch.device) -> float:
    """The time when the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _peak_of_process() -> int:
    """The most memory that this process has had so far, in bytes."""
    told = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return told if sys.platform == "darwin" else told * 1024
