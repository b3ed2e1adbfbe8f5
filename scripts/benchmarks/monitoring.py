"""Measures the cost of monitoring per training step and per validation on the CPU, as ratios from the same run.

    python scripts/benchmarks/monitoring.py [--workload mlp|cnn|transformer|all] [--rounds 8] [--steps 60]
        [--threads 1] [--variants dead wandb] [--validation]

"Bare" is a ``pl.Trainer`` without callbacks and logging, on batches in memory. The variants add to it:

- GradientNormMonitor, DeadNeuronDetector and both, with ``every_n_steps=10`` and with 1. Both with
  ``TrainingHealth(every_n_steps=100)``. ``monitored_runs.py`` measures the default arguments, which adapt to a run.
- ``grad_norm`` of pytorch_lightning.utilities with ``log_dict``, at every 10th step and at every step.
- ``wandb.watch`` of the network, offline, with its default ``log_freq`` of 1000 and with 1. A row is committed at
  Lightning's logging steps. No measured step is a 1000th step, so the default shows the cost of the hooks only. A log
  adds a thousandth of the cost of ``log_freq=1``. Neither clock includes wandb's second process.
- bare again, identical to bare, which shows the noise.

All variants have a logger: W&B's for ``wandb.watch``, a logger that discards everything for the others.
``log_every_n_steps`` is 10 instead of Lightning's 50.

A round is one training run in a separate process, with the same network, optimizer and memory for all its variants.
There is one for our callbacks, one for ``grad_norm`` and one for W&B, each with bare steps. Variants take turns of 30
steps, in a new random order in each sweep. Between two turns, the loader calls the hooks that end and begin training
and exchanges the callbacks of the trainer. In each turn after the first hundred steps, 10 steps are discarded and 20
are measured. A step lasts from the request for its batch to the request for the next one, including all hooks and
logging. The measured steps contain no validation, checkpoint or end of an epoch. CPU time is the time of the process.

Each step is divided by the median step of the bare turns of its sweep. The median over all steps of a variant would
hide the cost of every 10th step. Therefore the median is computed for each of the 10 positions in the cadence, and the
mean of the ten is the time of the variant in the round. It is divided by the time of both bare variants (for bare
again: of bare). Prints the geometric mean of the ratios over the rounds with its 95% interval (Student's t on the
logarithms). Also prints the CPU time added at the 10th position and at the others, as medians over the rounds. The
variants of other tools have half the sweeps, since they need less precision.

``--validation`` measures a validation pass of 20 batches with and without DeadNeuronDetector instead, from before the
first hook of a callback until after the last one. A turn is 3 training steps, each followed by a pass. The steps and
the first pass are discarded. A round has ``--steps`` / 20 turns.

Targets: at every tenth step <= 1.01, at every step <= 1.05. A target is reached or missed if the whole interval is
on one side.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import itertools
import logging
import math
import multiprocessing
import os
import random
import statistics
import tempfile
import time
import warnings
from collections import UserList
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from monitoring_variants import (
    CADENCE,
    CONTROLS,
    GROUPS,
    HAS_WANDB,
    OURS,
    VARIANTS,
    WORKLOADS,
    NullLogger,
    Workload,
    offline_wandb,
)
from pytorch_lightning.loggers.logger import Logger
from scipy import stats
from torch import nn

WARM_STEPS, TURN_STEPS = CADENCE, 2 * CADENCE  # discarded and measured steps of a turn
FIRST_STEPS = 10 * CADENCE  # before the first turn; TrainingHealth inspects 21 of them in detail
VALIDATION_TURN = 2  # passes
VALIDATION_BATCHES = 20
FORK = multiprocessing.get_context("fork")  # the imports take seconds


class Times(NamedTuple):
    wall: float
    cpu: float

    @classmethod
    def now(cls) -> Times:
        return cls(time.perf_counter(), time.process_time())

    def until_now(self) -> Times:
        wall, cpu = Times.now()
        return Times(wall - self.wall, cpu - self.cpu)


Round = dict[str, list[list[Times]]]  # indexed by variant, turn and step
Entry = tuple[list[pl.Callback], Logger]


class Task(pl.LightningModule):
    """Logs nothing, to make bare steps cheap, and records the time of its last validation."""

    def __init__(self, workload: Workload) -> None:
        super().__init__()
        self.network = workload.network()
        self.optimizer = workload.optimizer
        self.validation = Times(math.nan, math.nan)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        inputs, target = batch
        return nn.functional.cross_entropy(self.network(inputs), target)

    def validation_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return self.training_step(batch, batch_idx)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.optimizer(self.parameters(), lr=1e-3)

    def on_validation_model_eval(self) -> None:  # before on_validation_start of any callback
        self.begin = Times.now()
        super().on_validation_model_eval()

    def on_validation_end(self) -> None:  # after the hook of every callback
        self.validation = self.begin.until_now()


class Turns:
    """A loader that exchanges the callbacks of its trainer between two batches."""

    def __init__(self, trainer: pl.Trainer, task: Task, batches: list[Any], sweeps: int, with_validation: bool) -> None:
        self.trainer, self.task, self.batches, self.sweeps = trainer, task, itertools.cycle(batches), sweeps
        self.warm, self.measured = (1, VALIDATION_TURN) if with_validation else (WARM_STEPS, TURN_STEPS)
        self.with_validation = with_validation
        self.entries: dict[str, Entry] = {}
        self.times: Round = {}

    def __len__(self) -> int:  # Lightning prefetches a batch from a loader without a length
        return 10**9

    def __iter__(self) -> Iterator[Any]:
        yield from itertools.islice(self.batches, self.measured if self.with_validation else FIRST_STEPS)
        for _ in range(self.sweeps):
            for name in random.sample(list(self.entries), len(self.entries)):
                with self.active_variant(*self.entries[name]):
                    yield from itertools.islice(self.batches, self.warm)
                    self.times[name].append((yield from self.turn()))

    def turn(self) -> Generator[Any, None, list[Times]]:
        times = []
        for batch in itertools.islice(self.batches, self.measured):
            start = Times.now()
            yield batch
            times.append(self.task.validation if self.with_validation else start.until_now())
        return times

    @contextlib.contextmanager
    def active_variant(self, callbacks: list[pl.Callback], logger: Logger) -> Iterator[None]:
        """Adds callbacks to the trainer and calls their start hooks. Then calls their end hooks and removes them."""
        self.trainer.callbacks, self.trainer.loggers = callbacks, [logger]  # pyright: ignore[reportAttributeAccessIssue]
        for callback in callbacks:
            callback.setup(self.trainer, self.task, "fit")
        for begin in ("on_fit_start", "on_train_start", "on_train_epoch_start"):
            for callback in callbacks:
                getattr(callback, begin)(self.trainer, self.task)
        yield
        for callback in callbacks:
            callback.on_train_end(self.trainer, self.task)
        for callback in callbacks:
            callback.teardown(self.trainer, self.task, "fit")
        self.trainer.callbacks = []  # pyright: ignore[reportAttributeAccessIssue]
        self.trainer.fit_loop.epoch_loop._results.clear()  # noqa: SLF001 (else logged in later turns)


def keep_freed_memory() -> None:
    """Prevents glibc from returning memory to the kernel.

    This cost 16% of the step time in some processes and nothing in others. It depends on the last allocations if the
    end of the heap is freed and faulted in again at each step.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for option in (-1, -3):  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
            mallopt(option, 1 << 30)


def run_round(
    workload_name: str, names: Sequence[str], sweeps: int, threads: int, with_validation: bool, seed: int
) -> Round:
    """Trains once in this process, with the variants in turns."""
    keep_freed_memory()
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    random.seed(seed)
    workload = WORKLOADS[workload_name]
    task = Task(workload)
    batches = [
        (torch.randn(workload.batch_size, 1, 28, 28), torch.randint(10, (workload.batch_size,)))
        for _ in range(VALIDATION_BATCHES)
    ]
    off = dict.fromkeys(("enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=1,
        log_every_n_steps=CADENCE,
        val_check_interval=1 if with_validation else None,
        num_sanity_val_steps=0,
        logger=NullLogger(),
        **off,
    )
    turns = Turns(trainer, task, batches, sweeps, with_validation)
    turns.entries = {name: (VARIANTS[name].callbacks(), VARIANTS[name].logger()) for name in names}
    turns.times = {name: [] for name in names}
    trainer.fit(task, turns, UserList(batches) if with_validation else None)  # a list means several loaders
    if any(VARIANTS[name].logger is offline_wandb for name in names):
        offline_wandb().experiment.finish()
    return turns.times


def step_times(times: Round, name: str, clock: str) -> list[float]:
    """Returns the median step at each position of the cadence, relative to the bare steps of its sweep."""
    relative: list[list[float]] = [[] for _ in range(CADENCE)]
    for sweep, turn in enumerate(times[name]):
        bare = statistics.median(getattr(step, clock) for control in CONTROLS for step in times[control][sweep])
        for position, step in enumerate(turn):
            relative[position % CADENCE].append(getattr(step, clock) / bare)
    return [statistics.median(position) for position in relative if position]


def log_ratios(rounds: list[Round], name: str, clock: str) -> list[float]:
    """Returns the log ratio of a variant to both bare variants in each round (for bare again: to bare)."""
    below = ["bare"] if name in CONTROLS else list(CONTROLS)
    return [
        math.log(
            statistics.fmean(step_times(times, name, clock))
            / statistics.fmean(position for control in below for position in step_times(times, control, clock))
        )
        for times in rounds
    ]


def added_milliseconds(rounds: list[Round], name: str) -> tuple[float, float]:
    """Returns the CPU time in ms that is added to bare steps, at the 10th position and at the others."""
    more = []
    for times in rounds:
        unit = statistics.median(step.cpu for control in CONTROLS for turn in times[control] for step in turn) * 1e3
        bare = statistics.fmean(position for control in CONTROLS for position in step_times(times, control, "cpu"))
        *other_times, tenth = (unit * (position - bare) for position in step_times(times, name, "cpu"))
        more.append((tenth, statistics.fmean(other_times)))
    tenths, other_times = zip(*more, strict=True)
    return statistics.median(tenths), statistics.median(other_times)


def interval(logs: Sequence[float]) -> tuple[float, float, float]:
    """Returns the geometric mean and the ends of its 95% interval."""
    half = stats.t.ppf(0.975, len(logs) - 1) * statistics.stdev(logs) / math.sqrt(len(logs))
    mean = statistics.fmean(logs)
    return math.exp(mean), math.exp(mean - half), math.exp(mean + half)


def verdict(low: float, high: float, target: float) -> str:
    return "reached" if high <= target else "MISSED" if low > target else "inconclusive"


def show(rounds: list[Round], validation: bool) -> None:
    for name in rounds[0]:
        milliseconds = statistics.median(step.wall for times in rounds for turn in times[name] for step in turn) * 1e3
        columns, verdicts, target = [f"{name:<33} {milliseconds:6.2f} ms"], [], VARIANTS[name].target
        for clock in ("wall", "cpu") if name != "bare" else ():
            ratio, low, high = interval(log_ratios(rounds, name, clock))
            columns.append(f"{ratio:.3f} [{low:.3f}, {high:.3f}]")
            verdicts.append("" if target is None else verdict(low, high, target))
        if verdicts and not validation:
            columns.append("{:+6.2f} {:+6.2f} ms".format(*added_milliseconds(rounds, name)))
            columns.append("" if target is None else f"{target}: {', '.join(verdicts)}")
        print("  " + "  ".join(columns).rstrip(), flush=True)


def in_own_process(seed: int, *arguments: Any) -> Round:
    with ProcessPoolExecutor(1, mp_context=FORK) as pool:
        return pool.submit(run_round, *arguments, seed).result()


def measure(name: str, arguments: argparse.Namespace) -> None:
    unit_description = f"validation pass of {VALIDATION_BATCHES} batches" if arguments.validation else "training step"
    workload = WORKLOADS[name]
    print(f"\nper {unit_description}: {name}, batches of {workload.batch_size}, {workload.optimizer.__name__}")
    more = "" if arguments.validation else "  10th, others +cpu  target: wall, cpu"
    print(f"  {'':<33} {'median':>9}  {'wall / bare':<20}  {'cpu / bare':<20}{more}".rstrip())
    for group in [["DeadNeuronDetector"]] if arguments.validation else GROUPS:
        chosen = [variant for variant in group if any(word.lower() in variant.lower() for word in arguments.variants)]
        if chosen:
            sweeps = max(1, arguments.steps // TURN_STEPS)
            sweeps = sweeps if arguments.validation or group is OURS else math.ceil(sweeps / 2)
            fixed = (name, [*CONTROLS, *chosen], sweeps, arguments.threads, arguments.validation)
            show([in_own_process(seed, *fixed) for seed in range(arguments.rounds)], arguments.validation)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--workload", choices=(*WORKLOADS, "all"), default="all")
    parser.add_argument("--rounds", type=int, default=8, help="at least 2")
    parser.add_argument("--steps", type=int, default=60, help="measured steps per variant and round: 20, 40, ...")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch's operations")
    parser.add_argument(
        "--variants", nargs="*", default=[""], help="variants whose name contains one of these words (default: all)"
    )
    parser.add_argument("--validation", action="store_true", help="measure validation passes, not steps")
    arguments = parser.parse_args()
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="pytorch_lightning")
    libraries = ", ".join(
        f"{name} {version(name)}" for name in ("torch", "pytorch-lightning", *(["wandb"] if HAS_WANDB else []))
    )
    print(f"{libraries}, {os.cpu_count()} cores, {arguments.threads} used, CPU only")
    print("ratios: geometric mean over the rounds [95% interval]; bare again shows the noise")
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "WANDB_DIR": folder}
        for name in WORKLOADS if arguments.workload == "all" else [arguments.workload]:
            measure(name, arguments)


if __name__ == "__main__":
    main()
