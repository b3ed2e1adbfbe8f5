"""Measures the cost of checkpoints: the stall, the duration of a write, and the slowdown of steps during a write.

    python scripts/benchmarks/checkpoint.py [--megabytes 540] [--rounds 7] [--threads 1 2]

All variants save the same state on the CPU to ``--folder``: a Lightning checkpoint with ``--megabytes`` of frozen
layers and a small trained network, with steps of about 10 ms. In each round, in random order:

- plain copy: ``copy_`` of every tensor of the checkpoint into reused buffers. All other times are ratios to it.
- ours: ``CheckpointRecovery``, asynchronous. The stall is the time between two batches, including the capture of the
  state. The total ends when the write is committed and verified and the previous checkpoint is deleted.
- ours, not asynchronous.
- ModelCheckpoint: ``trainer.save_checkpoint``, as ModelCheckpoint calls it. It does not call fsync.
- AsyncCheckpointIO: the same with this plugin.
- DCP: ``torch.distributed.checkpoint.async_save`` in one process with its default staging. The caching stager requires
  a GPU.

The first save of each variant is discarded. "Step meanwhile" is the median duration of steps during a write, divided
by the median before it. Memory is the growth of the resident set over all rounds, in checkpoint sizes.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import random
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytorch_lightning as pl
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from pytorch_lightning.plugins.io import AsyncCheckpointIO
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from stormproof import CheckpointRecovery, resumable
from stormproof.lightning.internals import dump_checkpoint

MEGABYTE = 1 << 20
FORK = multiprocessing.get_context("fork")  # the imports take seconds


class Task(pl.LightningModule):
    def __init__(self, megabytes: int) -> None:
        super().__init__()
        self.small = nn.Sequential(nn.Linear(512, 1024), nn.ReLU(), nn.Linear(1024, 512))
        layers = megabytes * MEGABYTE // (4 * 1024 * 1024)
        self.frozen = nn.ModuleList(nn.Linear(1024, 1024, bias=False) for _ in range(layers))
        self.frozen.requires_grad_(False)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return self.small(batch[0]).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.small.parameters(), lr=1e-3)


class Probe(pl.Callback):
    """Measures each step and calls ``save`` at some of them.

    ``save`` starts a write and returns a function that returns True when the write is complete.
    """

    def __init__(self, save: Callable[[pl.Trainer], Callable[[], bool]], saves: int, rest: int) -> None:
        self.save, self.saves, self.rest = save, saves, rest
        self.before: list[float] = []
        self.meanwhile: list[float] = []
        self.stalls: list[float] = []
        self.totals: list[float] = []
        self._writing: Callable[[], bool] | None = None
        self._saved_at = 0.0
        self._rested = 0

    def on_train_batch_start(self, trainer: pl.Trainer, *args: Any) -> None:
        if self._writing is None and self._rested >= self.rest:
            if len(self.stalls) == self.saves:
                trainer.should_stop = True
            else:
                self._rested = 0
                self._saved_at = time.perf_counter()
                self._writing = self.save(trainer)
                self.stalls.append(time.perf_counter() - self._saved_at)
        self._was_writing = self._writing is not None and not self._writing()
        self._begun = time.perf_counter()

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        seconds = time.perf_counter() - self._begun
        if self._writing is None:
            self._rested += 1
            self.before.append(seconds)
        elif not self._writing():
            if self._was_writing:
                self.meanwhile.append(seconds)
        else:
            self.totals.append(time.perf_counter() - self._saved_at)
            self._writing = None


def save_with_recovery(
    folder: Path, *, asynchronous: bool
) -> tuple[CheckpointRecovery, Callable[[pl.Trainer], Callable[[], bool]]]:
    recovery = CheckpointRecovery(folder, every_n_train_steps=10**9, async_save=asynchronous)

    def save(trainer: pl.Trainer) -> Callable[[], bool]:
        recovery.save_coordinator.save(trainer, trainer.lightning_module, time.monotonic(), has_validated=False)
        writer = recovery.save_coordinator.writer
        assert writer is not None
        return lambda: not writer.is_busy

    return recovery, save


def save_with_model_checkpoint(
    folder: Path, plugin: AsyncCheckpointIO | None
) -> Callable[[pl.Trainer], Callable[[], bool]]:
    def save(trainer: pl.Trainer) -> Callable[[], bool]:
        trainer.save_checkpoint(folder / "stock.ckpt")
        if plugin is None:
            return lambda: True
        executor = plugin._executor  # noqa: SLF001 (there is no public way to wait for a write)
        assert executor is not None
        return executor.submit(lambda: None).done

    return save


def save_with_dcp(folder: Path) -> Callable[[pl.Trainer], Callable[[], bool]]:
    def save(trainer: pl.Trainer) -> Callable[[], bool]:
        state = dump_checkpoint(trainer)["state_dict"]
        checkpoint_path = folder / f"dcp-{trainer.global_step}"
        future: Any = dcp.async_save(state, checkpoint_id=checkpoint_path)
        return future.done

    return save


def time_plain_copy(task: Task, times: int) -> float:
    """Returns the median duration of ``times`` copies. The first copy is discarded."""
    tensors = list(task.state_dict().values())
    buffers = [torch.empty_like(tensor) for tensor in tensors]
    seconds = []
    for _ in range(times + 1):
        begun = time.perf_counter()
        for buffer, tensor in zip(buffers, tensors, strict=True):
            buffer.copy_(tensor)
        seconds.append(time.perf_counter() - begun)
    return statistics.median(seconds[1:])


VARIANTS = ("ours", "ours, not asynchronous", "ModelCheckpoint", "AsyncCheckpointIO", "DCP async_save")


class Measured:
    def __init__(self, probe: Probe, memory: float) -> None:
        self.stall = statistics.median(probe.stalls[1:])
        self.total = statistics.median(probe.totals[1:])
        self.slower = statistics.median(probe.meanwhile) / statistics.median(probe.before) if probe.meanwhile else 1.0
        self.memory = memory


def measure(name: str, folder: Path, megabytes: int, saves: int) -> Measured:
    """Runs a training run with ``saves`` + 1 saves. The first save is discarded."""
    torch.manual_seed(0)
    recovery, plugins = None, []
    if name.startswith("ours"):
        recovery, save = save_with_recovery(folder, asynchronous=name == "ours")
    elif name.startswith("DCP"):
        save = save_with_dcp(folder)
    else:
        plugins = [AsyncCheckpointIO()] if name.startswith("Async") else []
        save = save_with_model_checkpoint(folder, plugins[0] if plugins else None)
    probe = Probe(save, saves + 1, rest=30)
    trainer = pl.Trainer(
        accelerator="cpu", devices=1, max_epochs=-1, logger=False, plugins=plugins,
        callbacks=[*([recovery] if recovery else []), probe],
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    task = Task(megabytes)
    size = sum(tensor.numel() * tensor.element_size() for tensor in task.state_dict().values())
    before = psutil.Process().memory_info().rss
    trainer.fit(task, resumable(DataLoader(TensorDataset(torch.randn(1024, 512)), batch_size=64)))
    return Measured(probe, (psutil.Process().memory_info().rss - before) / size)


def in_child(name: str, megabytes: int, saves: int, threads: int, folder: Path) -> tuple[float, Measured]:
    torch.set_num_threads(threads)
    if name.startswith("DCP"):
        dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
    copy = time_plain_copy(Task(megabytes), saves)
    with tempfile.TemporaryDirectory(dir=folder) as child_folder:
        return copy, measure(name, Path(child_folder), megabytes, saves)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--megabytes", type=int, default=540)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--saves", type=int, default=4, help="measured saves per variant and round")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="threads of torch's operations")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--variants", nargs="*", default=list(VARIANTS), choices=VARIANTS)
    arguments = parser.parse_args()
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    size = f"{arguments.megabytes} MB"
    print(f"torch {torch.__version__}, {os.cpu_count()} cores, {size}; median [minimum, maximum] of the rounds")
    for threads in arguments.threads:
        results: dict[str, list[tuple[float, Measured]]] = {name: [] for name in arguments.variants}
        for _ in range(arguments.rounds):
            for name in random.sample(arguments.variants, len(arguments.variants)):
                fixed = (name, arguments.megabytes, arguments.saves, threads, arguments.folder)
                with ProcessPoolExecutor(1, mp_context=FORK) as pool:
                    results[name].append(pool.submit(in_child, *fixed).result())
        copies = [copy * 1e3 for result_times in results.values() for copy, _ in result_times]
        print(f"\n{threads} thread(s) of torch; plain copy {spread(copies, '.0f')} ms")
        print(f"  {'':<24}{'stall / copy':<22}{'total / copy':<22}{'step meanwhile':<22}memory / state")
        for name, result_times in results.items():
            shown = (
                [measured.stall / copy for copy, measured in result_times],
                [measured.total / copy for copy, measured in result_times],
                [measured.slower for _, measured in result_times],
                [measured.memory for _, measured in result_times],
            )
            print(f"  {name:<24}" + "".join(f"{spread(values, '.2f'):<22}" for values in shown), flush=True)


def spread(values: list[float], form: str) -> str:
    return f"{statistics.median(values):{form}} [{min(values):{form}}, {max(values):{form}}]"


if __name__ == "__main__":
    main()
