"""Injects faults that cause divergence and compares test accuracies with and without DivergenceGuard.

    python scripts/demos/divergence.py [--data digits fashion_mnist] [--seeds 5] [--jobs 2] [--runs-dir runs/divergence]
        [OVERRIDE …]

Each run is ``train.py`` with a callback from this file and the given overrides. One fault is injected at step 100:

- ``nan_batch``: a batch of NaN inputs.
- ``large_batch``: a batch whose inputs are multiplied by 1,000.
- ``rate_spike``: a step with 1,000 times the learning rate. It ruins the weights while loss and gradient are normal.

Prints the mean test accuracies over the seeds, the standard error without a fault, and the distance from the mean
without a fault in standard errors. Finished runs are not repeated.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from stormproof.testing import FaultInjector

ROOT = Path(__file__).resolve().parents[2]
STEP = 100
FAULTS = ("none", "nan_batch", "large_batch", "rate_spike")
LENGTH = {"digits": [], "fashion_mnist": ["trainer.max_epochs=2"]}


class LearningRateSpike(pl.Callback):
    """Takes the step after ``step`` with ``factor`` times the learning rate."""

    def __init__(self, step: int, factor: float = 1000.0) -> None:
        self.step, self.factor = step, factor
        self._rates: list[float] | None = None

    def on_train_batch_start(self, trainer: pl.Trainer, *args: Any) -> None:
        if trainer.global_step == self.step and self._rates is None:
            groups = trainer.optimizers[0].param_groups
            self._rates = [group["lr"] for group in groups]
            for group in groups:
                group["lr"] *= self.factor

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        if trainer.global_step == self.step + 1 and self._rates is not None:
            for group, rate in zip(trainer.optimizers[0].param_groups, self._rates, strict=True):
                group["lr"] = rate


def fault(name: str) -> pl.Callback:
    """Returns the callback that injects a fault. Used as ``callbacks.fault._target_``."""
    if name == "rate_spike":
        return LearningRateSpike(STEP)
    return FaultInjector().spike(math.nan if name == "nan_batch" else 1000.0, step=STEP)


def train(data: str, name: str, seed: int, guarded: bool, folder: Path, overrides: list[str]) -> float:
    """Trains a run and returns its test accuracy."""
    run = f"{data}-{name}-{'guarded' if guarded else 'alone'}-{seed}"  # prose: allow (name in the docs)
    run_overrides = [f"data={data}", f"name={run}", f"runs_dir={folder}", f"seed={seed}", "logger=none", *LENGTH[data]]
    run_overrides += [] if guarded else ["~callbacks.divergence_guard"]
    run_overrides += (
        [] if name == "none" else ["callbacks.fault._target_=divergence.fault", f"callbacks.fault.name={name}"]
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *run_overrides, *overrides], env=environment, capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    if result.returncode:
        sys.exit(f"{run} ended with {result.returncode}: {result.stderr[-800:]}")
    return json.loads((folder / run / "summary.json").read_text())["test"]["accuracy"]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--data", nargs="+", choices=LENGTH, default=[*LENGTH])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--runs-dir", type=Path, default=Path("runs/divergence"))
    arguments, overrides = parser.parse_known_args()
    with ThreadPoolExecutor(arguments.jobs) as pool:
        cells = [(data, name, guarded) for data in arguments.data for name in FAULTS for guarded in (False, True)]
        seeds = range(arguments.seeds)
        runs = {
            (data, name, guarded): [
                pool.submit(train, data, name, seed, guarded, arguments.runs_dir, overrides) for seed in seeds
            ]
            for data, name, guarded in cells
        }
        accuracy = {cell: [run.result() for run in results] for cell, results in runs.items()}
    for data in arguments.data:
        healthy = accuracy[data, "none", False]
        error = statistics.stdev(healthy) / math.sqrt(len(healthy))
        print(f"\n{data}: {statistics.mean(healthy):.4f} without a fault, standard error {error:.4f}\n")
        print("| fault | without the guard | with it |\n| --- | --- | --- |")
        for name in FAULTS:
            table_cells = [_format_accuracy(accuracy[data, name, guarded], healthy, error) for guarded in (False, True)]
            print(f"| {name} | {table_cells[0]} | {table_cells[1]} |")


def _format_accuracy(values: list[float], healthy: list[float], error: float) -> str:
    mean = statistics.mean(values)
    off = (mean - statistics.mean(healthy)) / error
    return f"{mean:.4f} ({off:+.1f} standard errors)" if abs(off) <= 2 else f"**{mean:.4f} ({off:+.1f})**"


if __name__ == "__main__":
    main()
