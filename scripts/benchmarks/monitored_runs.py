"""Measures the cost of the default callbacks over whole training runs on the CPU, relative to bare Lightning.

    python scripts/benchmarks/monitored_runs.py [--workload mlp|cnn|transformer|all] [--rounds 10] [--steps 400]
        [--threads 1] [--reduced]

Variants, each a training run with the same network, batches and seed:

- bare: a ``pl.Trainer`` without callbacks.
- bare again: the same, which shows the noise.
- default: all callbacks of the plugin that the application adds, with default arguments, except for the tables.
  Checkpoints are written to a temporary folder.
- every step: the same, with GradientNormMonitor and DeadNeuronDetector at every step.

All have a logger that discards everything, and ``log_every_n_steps=50``. A step lasts from the request for its batch to
the end of all hooks after it. The first step of a run is discarded, since it writes the first checkpoint.

In a round, each variant trains in a process of its own, and the processes take turns after each step. So changes of the
machine's speed that last longer than a few steps affect all variants. The order of the turns differs between rounds.
The time of a variant in a round is the mean of its steps, for the first 100 steps and for all later ones. CPU time is
the time of the process.

Prints the geometric mean of the ratios to bare over the rounds, with its 95% interval (Student's t on the logarithms).
"""

from __future__ import annotations

import argparse
import itertools
import logging
import math
import multiprocessing
import random
import statistics
import tempfile
import time
import warnings
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import pytorch_lightning as pl
import torch
import torch.multiprocessing as mp
from monitoring import interval, keep_freed_memory, verdict
from monitoring_variants import WORKLOADS, NullLogger, Workload
from torch import nn

from stormproof import (
    CheckpointRecovery,
    DeadNeuronDetector,
    DivergenceGuard,
    GradientNormMonitor,
    HangWatch,
    Preemption,
    StepTimer,
    TrainingHealth,
)
from stormproof.lightning.method_replacement import call_after

FIRST_STEPS = 100
TARGETS = {"default": (1.04, 1.01), "every step": (None, 1.05)}  # for the first steps and for later ones
CLOCKS = (time.perf_counter, time.process_time)
FORK = multiprocessing.get_context("fork")
TIMEOUT = 600.0  # seconds until a process gives up waiting for the others


class Task(pl.LightningModule):
    def __init__(self, workload: Workload) -> None:
        super().__init__()
        self.network, self.optimizer = workload.network(), workload.optimizer

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        inputs, target = batch
        return nn.functional.cross_entropy(self.network(inputs), target)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.optimizer(self.parameters(), lr=1e-3)


class Turns:
    """Lets one process after the other run, for a step each.

    Args:
        count: Number of processes.
    """

    def __init__(self, count: int) -> None:
        self.barrier = FORK.Barrier(count)
        self.semaphores = [FORK.Semaphore(int(index == 0)) for index in range(count)]

    def start(self, index: int) -> None:
        """Waits until all processes are ready, and for the first turn of a process."""
        self.barrier.wait(TIMEOUT)
        self._wait(index)

    def pass_on(self, index: int) -> None:
        """Ends a turn and waits for the next one."""
        self.semaphores[(index + 1) % len(self.semaphores)].release()
        self._wait(index)

    def end(self, index: int) -> None:
        """Ends the last turn and waits until all processes have ended theirs."""
        self.semaphores[(index + 1) % len(self.semaphores)].release()
        self.barrier.wait(TIMEOUT)

    def _wait(self, index: int) -> None:
        assert self.semaphores[index].acquire(timeout=TIMEOUT), "another process does not take its turn"


class Batches:
    """Repeats batches in memory."""

    def __init__(self, batches: list[Any], steps: int) -> None:
        self.batches, self.steps = batches, steps

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Any]:
        return itertools.islice(itertools.cycle(self.batches), self.steps)


class TakesTurns(pl.Callback):
    """Takes turns with other processes after each batch and all hooks, and records the times of the steps.

    Callbacks that time steps do not see the wait, because the request for the next batch comes after it.
    """

    def __init__(self, turns: Turns, index: int) -> None:
        self.turns, self.index = turns, index
        self.step_times: list[tuple[float, ...]] = []
        self.start: list[float] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.turns.start(self.index)
        call_after(trainer.fit_loop.epoch_loop, "on_advance_end", lambda *_: self.end_step())
        self.start = [clock() for clock in CLOCKS]

    def end_step(self) -> None:
        self.step_times.append(tuple(clock() - start for clock, start in zip(CLOCKS, self.start, strict=True)))
        self.turns.pass_on(self.index)
        self.start = [clock() for clock in CLOCKS]


def callbacks(variant: str, folder: str) -> list[pl.Callback]:
    if variant.startswith("bare"):
        return []
    every: dict[str, Any] = {"every_n_steps": 1} if variant == "every step" else {}
    return [
        StepTimer(),
        GradientNormMonitor(table=False, **every),
        DeadNeuronDetector(table=False, **every),
        TrainingHealth(),
        DivergenceGuard(),
        CheckpointRecovery(folder),
        HangWatch(),
        Preemption(),
    ]


def train(
    index: int, variants: list[str], name: str, batches: list[Any], steps: int, turns: Turns, results: Any
) -> None:
    """Trains one of ``variants`` and puts the mean wall and CPU time of its first steps and of later ones."""
    torch.manual_seed(0)
    takes_turns = TakesTurns(turns, index)
    off = dict.fromkeys(("enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    with tempfile.TemporaryDirectory() as folder:
        pl.Trainer(
            accelerator="cpu",
            devices=1,
            max_epochs=1,
            log_every_n_steps=50,
            logger=NullLogger(),
            callbacks=[*callbacks(variants[index], folder), takes_turns],
            **off,
        ).fit(Task(WORKLOADS[name]), Batches(batches, steps))
    turns.end(index)
    windows = takes_turns.step_times[1:FIRST_STEPS], takes_turns.step_times[FIRST_STEPS:]
    means = [tuple(map(statistics.fmean, zip(*window, strict=True))) for window in windows]
    results.put((variants[index], means))


def measure(name: str, rounds: int, steps: int) -> None:
    workload, variants = WORKLOADS[name], ["bare", "bare again", "default", "every step"]
    torch.manual_seed(1)
    batches = [
        (torch.randn(workload.batch_size, 1, 28, 28), torch.randint(10, (workload.batch_size,))) for _ in range(20)
    ]
    times: dict[str, list[list[tuple[float, ...]]]] = {variant: [] for variant in variants}
    for _ in range(rounds):
        random.shuffle(variants)
        results = FORK.SimpleQueue()
        arguments = (variants, name, batches, steps, Turns(len(variants)), results)
        mp.start_processes(train, arguments, nprocs=len(variants), start_method="fork")
        for _ in variants:
            variant, means = results.get()
            times[variant].append(means)
    milliseconds = statistics.median(entry[1][0] for entry in times["bare"]) * 1e3
    print(f"\n{name}, batches of {workload.batch_size}, {workload.optimizer.__name__}, bare step {milliseconds:.2f} ms")
    print(f"  {'':<12} {'steps':<10} {'wall / bare':<22} {'cpu / bare':<22} target: wall, cpu")
    for variant in ("bare again", *TARGETS):
        for window, window_name in enumerate((f"2 to {FIRST_STEPS}", "later")):
            columns, verdicts = [], []
            target = TARGETS.get(variant, (None, None))[window]
            for clock in range(len(CLOCKS)):
                pairs = zip(times[variant], times["bare"], strict=True)
                ratio, low, high = interval(
                    [math.log(ours[window][clock] / bare[window][clock]) for ours, bare in pairs]
                )
                columns.append(f"{ratio:.3f} [{low:.3f}, {high:.3f}]")
                verdicts.append("" if target is None else verdict(low, high, target))
            result = "" if target is None else f"{target}: {', '.join(verdicts)}"
            print(f"  {variant:<12} {window_name:<10} {columns[0]:<22} {columns[1]:<22} {result}".rstrip(), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--workload", choices=(*WORKLOADS, "all"), default="all")
    parser.add_argument("--rounds", type=int, default=10, help="at least 2")
    parser.add_argument("--steps", type=int, default=400, help=f"steps of a run, above {FIRST_STEPS + 1}")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch's operations")
    parser.add_argument("--reduced", action="store_true", help="two rounds of 110 steps of the MLP")
    arguments = parser.parse_args()
    if arguments.reduced:
        arguments.workload, arguments.rounds, arguments.steps = "mlp", 2, FIRST_STEPS + 10
    keep_freed_memory()
    torch.set_num_threads(arguments.threads)
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    logging.getLogger("stormproof").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    libraries = ", ".join(f"{name} {version(name)}" for name in ("torch", "pytorch-lightning"))
    print(f"{libraries}, {arguments.threads} threads, CPU only; {arguments.rounds} rounds of {arguments.steps} steps")
    print("ratios: geometric mean over the rounds [95% interval]; bare again shows the noise")
    for name in WORKLOADS if arguments.workload == "all" else [arguments.workload]:
        measure(name, arguments.rounds, arguments.steps)


if __name__ == "__main__":
    main()
