"""Measures the overhead of an object store, as a mirror and as the only storage: save stalls and throughput.

    python scripts/benchmarks/object_store.py [--megabytes 64] [--rounds 5] [--steps 120] [--every 20]

In each round, in random order, three runs train: with a folder, with a folder and a mirror, and with an object store
only. The object store is an emulator of S3 (``moto``) on this machine. It shares the cores with the training run, which
a real object store would not. The CPU time is measured in the training process and includes uploads, but not the
emulator. Each ratio divides a run with an object store by the run with a folder in the same round. Printed are the
median, minimum and maximum over the rounds.
"""

from __future__ import annotations

import argparse
import logging
import os
import random
import statistics
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

sys.path.insert(0, str(Path(__file__).parents[2]))

from stormproof import CheckpointRecovery, resumable
from stormproof.checkpoint.storage import ObjectStorage
from tests.support.object_stores import run_s3_server

KINDS = ("mirror", "store")


class Task(pl.LightningModule):
    """A network with frozen layers, which make the checkpoint large."""

    def __init__(self, megabytes: int) -> None:
        super().__init__()
        self.small = nn.Sequential(nn.Linear(512, 1024), nn.ReLU(), nn.Linear(1024, 512))
        self.frozen = nn.ModuleList(nn.Linear(1024, 1024, bias=False) for _ in range(megabytes // 4))
        self.frozen.requires_grad_(False)

    def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
        return self.small(batch[0]).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.small.parameters())


class Times(pl.Callback):
    """Records the stalls of saves and the duration of all steps."""

    def __init__(self, recovery: CheckpointRecovery, every: int) -> None:
        self.stalls: list[float] = []
        self.start = self.end = 0.0
        self.cpu_start = self.cpu_end = 0.0
        self._recovery, self._every = recovery, every

    def on_train_batch_end(self, trainer: pl.Trainer, *arguments: object) -> None:
        if trainer.global_step == 1:
            self.start, self.cpu_start = time.perf_counter(), time.process_time()
        if trainer.global_step % self._every == 1 and trainer.global_step > 1:
            self.stalls.append(self._recovery.last_logged["checkpoint/stall_seconds"])
        self.end, self.cpu_end = time.perf_counter(), time.process_time()


@dataclass(frozen=True)
class Result:
    """Measurements of one run.

    Attributes:
        stall: Median time for which training waited for a save, in seconds.
        throughput: Steps per second.
        cpu_seconds_per_step: CPU time of the training process per step, in seconds.
        seconds_after_last_step: Time from the last step until ``fit`` returned, in seconds.
        uploads: Number of commits to the object store. 0 without one.
    """

    stall: float
    throughput: float
    cpu_seconds_per_step: float
    seconds_after_last_step: float
    uploads: int


def train(kind: str, url: str | None, megabytes: int, steps: int, every: int) -> Result:
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = url if kind == "store" and url else folder
        recovery = CheckpointRecovery(checkpoints, every_n_train_steps=every, mirror=url if kind == "mirror" else None)
        times = Times(recovery, every)
        loader = DataLoader(TensorDataset(torch.randn(steps * 64, 512)), batch_size=64)
        trainer = pl.Trainer(
            max_steps=steps,
            max_epochs=1,
            logger=False,
            accelerator="cpu",
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[times, recovery],
        )
        trainer.fit(Task(megabytes), resumable(loader), ckpt_path=recovery.latest_checkpoint())
        seconds_after_last_step = time.perf_counter() - times.end
        uploads = _count_commits(url) if url else 0
    throughput = (steps - 1) / (times.end - times.start)
    cpu_seconds_per_step = (times.cpu_end - times.cpu_start) / (steps - 1)
    return Result(statistics.median(times.stalls), throughput, cpu_seconds_per_step, seconds_after_last_step, uploads)


def _count_commits(url: str) -> int:
    """Returns the number of commits in the log of the object store."""
    storage = ObjectStorage(url)
    return sum(storage.read(f"log/{entry.name}").count(b'"committed"') for entry in storage.list("log"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--every", type=int, default=20, help="steps between checkpoints (default: 20)")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    rounds: list[dict[str, Result]] = []
    with run_s3_server() as server:
        os.environ |= server.environment()
        train("folder", None, arguments.megabytes, 2 * arguments.every, arguments.every)  # warms up imports and caches
        for _ in range(arguments.rounds):
            results = {}
            for kind in random.sample(["folder", *KINDS], 3):
                url = f"s3://{server.make_bucket()}/run" if kind in KINDS else None
                results[kind] = train(kind, url, arguments.megabytes, arguments.steps, arguments.every)
            rounds.append(results)
            print(results, flush=True)
    for kind in KINDS:
        for name in ("stall", "throughput", "cpu_seconds_per_step"):
            ratios = sorted(getattr(results[kind], name) / getattr(results["folder"], name) for results in rounds)
            print(f"{name}, ratio {kind}/folder: {statistics.median(ratios):.2f} ({ratios[0]:.2f}, {ratios[-1]:.2f})")
        waits = [
            f"{results[kind].seconds_after_last_step:.2f}/{results['folder'].seconds_after_last_step:.2f}"
            for results in rounds
        ]
        print(f"seconds after the last step, {kind}/folder: {', '.join(waits)}")
        uploads = [results[kind].uploads for results in rounds]
        print(f"uploads of {arguments.steps // arguments.every + 1} checkpoints, {kind}: {uploads}")


if __name__ == "__main__":
    main()
