"""Measures the cost of a training step in one and two processes on the CPU with gloo, as ratios from the same run.

    python scripts/benchmarks/scaling.py [--rounds 12] [--workload mlp|cnn|transformer]

Three variants train the same network on the same batches, with the same number of samples per process:

- plain: a loop of forward pass, backward pass and optimizer step; with two processes, in DistributedDataParallel.
- bare: a ``pl.Trainer`` with the strategy ``ddp``, without callbacks and logging.
- ours: the same with all callbacks of ``conf/callbacks/default.yaml`` and a resumable loader.

The variants alternate in the same processes, in a different order in each round. The first round is discarded. A turn
is a training run of 200 steps. The last 100 are measured on rank 0, from one request for a batch to the next. They
include ten logging steps, ten agreement steps and, at the end, one detailed inspection by TrainingHealth. There is no
validation. Checkpoints are written only at the start and the end of a turn, which are not measured.

Other load on the machine only makes steps longer. Steps are therefore grouped by their position in the cadence of ten,
and the shortest of each group counts. The last step counts as it is. Prints the geometric mean of the ratios over the
rounds with its 95% interval (Student's t).

The process group counts collectives, including those of DDP. Lightning synchronizes the ranks about signals at every
step. With Preemption, ours does so about once per second instead.

Targets: ours / bare <= 1.02, and no more collectives than bare at a step that is neither a logging step nor one of
these synchronizations. A target is reached or missed if the whole interval is on one side.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import logging
import math
import multiprocessing
import os
import random
import socket
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from monitoring_variants import CADENCE, WORKLOADS, NullLogger, Workload
from scipy import stats
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset

from stormproof import (
    CheckpointRecovery,
    DeadNeuronDetector,
    DivergenceGuard,
    GradientNormMonitor,
    HangWatch,
    Preemption,
    StepTimer,
    TrainingHealth,
    resumable,
)

FIRST, MEASURED = 100, 100
STEPS = FIRST + MEASURED + 1
TARGET = 1.02


class Turn(NamedTuple):
    """Seconds and number of collectives of each measured step, on rank 0."""

    seconds: list[float]
    collectives: list[int]

    def seconds_a_step(self) -> float:
        """Returns the mean over the measured steps, estimated for a machine without other load."""
        *regular, last = self.seconds
        shortest = [min(regular[index::CADENCE]) for index in range(CADENCE)]
        return (sum(shortest[index % CADENCE] for index in range(len(regular))) + last) / MEASURED


class Batches(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Repeats one batch. Records the time of each request and the number of collectives until then."""

    def __init__(self, batch_size: int, rank: int, ranks: int) -> None:
        self.ranks = ranks
        generator = torch.Generator().manual_seed(rank)
        self.batch = (
            torch.randn(batch_size, 1, 28, 28, generator=generator),
            torch.randint(10, (batch_size,), generator=generator),
        )
        self.requests: list[tuple[float, int]] = []

    def __len__(self) -> int:
        return STEPS * self.ranks  # a resumable loader distributes them over the ranks

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        self.requests.append((time.perf_counter(), collectives_so_far()))
        return self.batch

    def turn(self) -> Turn:
        times, counts = zip(*self.requests[FIRST:STEPS], strict=True)
        return Turn(_steps(times), _steps(counts))


class Classifier(pl.LightningModule):
    def __init__(self, workload: Workload) -> None:
        super().__init__()
        self.network = workload.network()
        self.optimizer = workload.optimizer

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return nn.functional.cross_entropy(self.network(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.optimizer(self.network.parameters(), lr=1e-3)


def collectives_so_far() -> int:
    if not distributed.is_initialized():
        return 0
    return distributed.group.WORLD._get_sequence_number_for_group()  # noqa: SLF001 (includes the collectives of DDP)


def no_callbacks(workload: Workload, batches: Batches, _: Path) -> None:
    network: nn.Module = workload.network()
    if distributed.is_initialized():
        network = DistributedDataParallel(network)
    optimizer = workload.optimizer(network.parameters(), lr=1e-3)
    for inputs, target in itertools.islice(DataLoader(batches, batch_size=None), STEPS):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(inputs), target).backward()
        optimizer.step()


def bare(workload: Workload, batches: Batches, _: Path) -> None:
    _trainer().fit(Classifier(workload), DataLoader(batches, batch_size=None))


def with_callbacks(workload: Workload, batches: Batches, folder: Path) -> None:
    callbacks = [
        StepTimer(),
        GradientNormMonitor(table=False),
        DeadNeuronDetector(table=False),
        TrainingHealth(),
        DivergenceGuard(),
        CheckpointRecovery(folder),
        HangWatch(run_folder=folder),
        Preemption(),
    ]
    with contextlib.redirect_stdout(io.StringIO()):  # discards the findings
        _trainer(callbacks=callbacks).fit(Classifier(workload), resumable(DataLoader(batches, batch_size=None)))


VARIANTS: dict[str, Callable[[Workload, Batches, Path], None]] = {
    "plain": no_callbacks,
    "bare": bare,
    "ours": with_callbacks,
}


def take_turns(rank: int, ranks: int, port: int, name: str, rounds: int, results: Any) -> None:
    """Runs all variants in all rounds in this process. Rank 0 puts its turns by variant into ``results``."""
    _suppress_output()
    torch.set_num_threads(1)
    os.environ.update(LOCAL_RANK=str(rank), NODE_RANK="0", WORLD_SIZE=str(ranks))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    if ranks > 1:
        distributed.init_process_group("gloo", rank=rank, world_size=ranks)
    workload = WORKLOADS[name]
    turns: dict[str, list[Turn]] = {variant: [] for variant in VARIANTS}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(rounds + 1):
            for variant in random.Random(number).sample(list(VARIANTS), len(VARIANTS)):
                batches = Batches(workload.batch_size, rank, ranks)
                position = _same_on_all([f"{folder}/{number}"])
                torch.manual_seed(0)
                VARIANTS[variant](workload, batches, Path(position))
                turns[variant].append(batches.turn())
        if ranks > 1:
            distributed.barrier()
    if rank == 0:
        results.put({variant: variant_turns[1:] for variant, variant_turns in turns.items()})
    if ranks > 1:
        distributed.destroy_process_group()


def measure(ranks: int, name: str, rounds: int) -> dict[str, list[Turn]]:
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = [
        context.Process(target=take_turns, args=(rank, ranks, port, name, rounds, results)) for rank in range(ranks)
    ]
    for process in processes:
        process.start()
    turns = results.get()
    for process in processes:
        process.join()
    return turns


def show(ranks: int, turns: dict[str, list[Turn]]) -> None:
    print(f"\n{ranks} process{'es' * (ranks > 1)}")
    means = {variant: [turn.seconds_a_step() for turn in variant_turns] for variant, variant_turns in turns.items()}
    for variant, variant_turns in means.items():
        print(f"  {variant:<6} {statistics.median(variant_turns) * 1e3:7.2f} ms per step")
    for above, below, target in (("ours", "bare", TARGET), ("bare", "plain", None), ("ours", "plain", None)):
        low, mean, high = interval([a / b for a, b in zip(means[above], means[below], strict=True)])
        print(f"  {above} / {below:<6} {mean:.3f} [{low:.3f}, {high:.3f}]{verdict(low, high, target)}")
    if ranks > 1:
        show_collectives(turns)


def show_collectives(turns: dict[str, list[Turn]]) -> None:
    for variant in ("bare", "ours"):
        counts: dict[bool, list[int]] = {True: [], False: []}
        for turn in turns[variant]:
            for step, count in enumerate(turn.collectives, FIRST + 1):
                counts[step % CADENCE == 0].append(count)
        often = ", ".join(
            f"{collective_count} at {counts[False].count(collective_count)}"
            for collective_count in sorted(set(counts[False]))
        )
        mean = statistics.fmean(counts[True])
        print(f"  {variant}: {mean:.2f} collectives at each {CADENCE}th step; of the others, {often}")


def interval(ratios: Sequence[float]) -> tuple[float, float, float]:
    """Returns the lower end of the 95% interval, the geometric mean and the upper end."""
    logarithms = [math.log(ratio) for ratio in ratios]
    mean = statistics.fmean(logarithms)
    half = stats.t.ppf(0.975, len(ratios) - 1) * statistics.stdev(logarithms) / math.sqrt(len(ratios))
    return math.exp(mean - half), math.exp(mean), math.exp(mean + half)


def verdict(low: float, high: float, target: float | None) -> str:
    if target is None:
        return ""
    return f"  target {target}: {'reached' if high <= target else 'MISSED' if low > target else 'inconclusive'}"


def _trainer(callbacks: Sequence[pl.Callback] = ()) -> pl.Trainer:
    ranks = distributed.get_world_size() if distributed.is_initialized() else 1
    off = dict.fromkeys(("enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    return pl.Trainer(
        accelerator="cpu",
        devices=ranks,
        strategy="ddp" if ranks > 1 else "auto",
        max_steps=STEPS,
        logger=NullLogger(),
        log_every_n_steps=CADENCE,
        use_distributed_sampler=False,
        callbacks=list(callbacks),
        **off,
    )


def _same_on_all(box: list[str]) -> str:
    if distributed.is_initialized():
        distributed.broadcast_object_list(box)
    return box[0]


def _steps(marks: Sequence[Any]) -> list[Any]:
    return [after - before for before, after in itertools.pairwise(marks)]


def _suppress_output() -> None:
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=12, help="at least 2")
    parser.add_argument("--workload", choices=tuple(WORKLOADS), default="mlp")
    arguments = parser.parse_args()
    libraries = ", ".join(f"{name} {version(name)}" for name in ("torch", "pytorch-lightning"))
    print(f"{libraries}, {os.cpu_count()} cores, one thread per process, CPU only; {arguments.workload}")
    print("ratios: geometric mean over the rounds [95% interval]")
    for ranks in (1, 2):
        show(ranks, measure(ranks, arguments.workload, arguments.rounds))


if __name__ == "__main__":
    main()
