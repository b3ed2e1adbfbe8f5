"""Measures training throughput and memory by batch size."""

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
from stormproof_train.data.spec import infer_spec
from stormproof_train.tuning.measuring_trainer import build_measuring_trainer

WARM_UP_BATCHES = 3
"""Warm-up batches before timing starts. They select kernels, start workers and allocate memory."""


@dataclasses.dataclass(frozen=True)
class Throughput:
    """Measurement of one batch size.

    Attributes:
        batch_size: Samples per optimizer step.
        samples_per_second: Training throughput, including the time spent waiting for data.
        memory: Peak memory so far in bytes, of the GPU or, without a GPU, of the process.
    """

    batch_size: int
    samples_per_second: float
    memory: int


def measure_throughputs(
    plan: Plan, sizes: Sequence[int], training_samples: int, seconds: float = 1.0, max_free_fraction: float = 0.5
) -> Iterator[Throughput | str]:
    """Trains with each batch size in turn. If it stops before the last size, it yields the reason as a sentence.

    Args:
        plan: Plan of a run on one device.
        sizes: Batch sizes, increasing by at most a factor of 2.
        training_samples: Number of training samples.
        seconds: Duration of each measurement in seconds. Must be positive.
        max_free_fraction: Share of the initially free memory that may be used, in (0, 1].
    """
    free_memory, initial_peak = psutil.virtual_memory().available, _peak_process_memory()
    for index, size in enumerate(sizes):
        try:
            yield _measure_throughput(plan, size, training_samples, seconds)
        except (RuntimeError, MemoryError) as error:
            if not (isinstance(error, MemoryError) or is_oom_error(error)):
                raise
            yield f"{size} does not fit into memory"
            return
        memory_growth = _peak_process_memory() - initial_peak
        if index + 1 < len(sizes) and 2 * memory_growth > max_free_fraction * free_memory:
            yield (
                f"{sizes[index + 1]} might take {2 * memory_growth / 2**30:.1f} GiB, more than "
                f"{max_free_fraction:.0%} of the {free_memory / 2**30:.1f} GiB that were free"
            )
            return


def build_with_batch_size(plan: Plan, size: int) -> tuple[pl.LightningDataModule, pl.LightningModule]:
    """Returns the data and a new network of the run with another batch size.

    Args:
        plan: Plan of the run.
        size: Samples per optimizer step.
    """
    pl.seed_everything(plan.seed, workers=True, verbose=False)
    data = dataclasses.replace(plan.data, kwargs={**plan.data.kwargs, "batch_size": size}).build(seed=plan.seed)
    spec = infer_spec(data)
    return data, build_task(plan, data, spec, plan.bind_loss(spec.task))


def _measure_throughput(plan: Plan, size: int, training_samples: int, seconds: float) -> Throughput:
    data, task = build_with_batch_size(plan, size)
    clock = _ThroughputTimer(seconds)
    with TemporaryDirectory() as folder:
        accumulate_grad_batches = int(plan.trainer.kwargs.get("accumulate_grad_batches", 1))
        # Full batches only: a smaller last batch would distort the measurement, and batch norm may reject it.
        batches = training_samples // size * accumulate_grad_batches
        trainer = build_measuring_trainer(plan, folder, [clock], limit_train_batches=batches)
        if trainer.strategy.root_device.type == "cuda":
            garbage_collection_cuda()
            torch.cuda.reset_peak_memory_stats(trainer.strategy.root_device)
        trainer.fit(task, datamodule=data)
        is_cuda = trainer.strategy.root_device.type == "cuda"
        memory = torch.cuda.max_memory_allocated(trainer.strategy.root_device) if is_cuda else _peak_process_memory()
    return Throughput(size, clock.samples / clock.elapsed, memory)


class _ThroughputTimer(Callback):
    """Counts samples for a number of seconds after the warm-up batches, then stops training."""

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
        if self._batches < WARM_UP_BATCHES:
            return
        if self._batches == WARM_UP_BATCHES:
            self._start = _synchronized_time(pl_module.device)
            return
        self.samples += len(batch[0])
        if time.perf_counter() - self._start >= self.seconds:
            self.elapsed = _synchronized_time(pl_module.device) - self._start
            trainer.should_stop = True


def _synchronized_time(device: torch.device) -> float:
    """Returns the time after the device has finished all queued work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _peak_process_memory() -> int:
    """Returns the peak memory of this process in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
