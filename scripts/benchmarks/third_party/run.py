"""Trains third-party projects with TrainingHealth and prints its false alarms.

    uv venv third_party && uv pip install --python third_party -r scripts/benchmarks/third_party/requirements.txt -e .
    third_party/bin/python scripts/benchmarks/third_party/run.py [NAME …] [--seeds 2] [--list]

``neuralforecast`` and ``pytorch-tabular`` need a second environment with ``requirements_2.txt``. Projects whose
packages are not installed are skipped.

Each project trains for 100 to 1600 steps, each run in a fork, one at a time. A line per run states the means of its
first and last losses, and its warnings. A project may use other measurements than losses (``projects.py``). Findings of
severity ``info`` do not count. The output of the packages is written to stderr.

A warning of a run that learned is counted as a false alarm, except for DATA_STARVATION. That one can be true, because
augmentation takes longer than a batch of these small networks.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import multiprocessing
import sys
import tempfile
import warnings
from collections import Counter
from dataclasses import dataclass
from importlib import import_module
from statistics import mean
from typing import Any, ClassVar

import pytorch_lightning as pl
import torch
import torch._dynamo  # imported by optimizers: once here instead of in each fork
from projects import PROJECTS, Project

from stormproof import TrainingHealth
from stormproof.finding import Finding, Severity

SECONDS = 600
"""Time limit of a run."""


@dataclass(frozen=True)
class Result:
    """The result of a run.

    Attributes:
        first: Mean of the first losses, at most 20 and at most a quarter of them.
        last: Mean of as many last losses.
        learned: Whether the run learned, by the rule of its project.
        warnings: Codes and steps of the warnings.
    """

    first: float
    last: float
    learned: bool
    warnings: list[tuple[str, int]]


class Losses(pl.Callback):
    """Records the losses in an attribute of the class, since some packages copy callbacks."""

    values: ClassVar[list[float]] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if isinstance(outputs, dict) and torch.is_tensor(outputs.get("loss")):
            self.values.append(float(outputs["loss"]))


class PrintedWarnings(logging.Handler):
    """Records each warning when it is printed, so that one that is withdrawn later counts too."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, int]] = []

    def emit(self, record: logging.LogRecord) -> None:
        finding: Finding | None = getattr(record, "finding", None)
        if finding is not None and finding.severity != Severity.INFO:
            self.found.append((finding.code, finding.step))


def train(project: Project, seed: int) -> Result:
    printed = PrintedWarnings()
    logging.getLogger("stormproof").addHandler(printed)
    function = getattr(import_module(project.module), project.name)
    pl.seed_everything(seed, verbose=False)
    callbacks = [Losses(), TrainingHealth()]
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder), contextlib.redirect_stdout(sys.stderr):
        values = function(seed, callbacks) or Losses.values
    count = max(1, min(20, len(values) // 4))
    first, last = mean(values[:count]), mean(values[-count:])
    return Result(first, last, project.learned(first, last), printed.found)


def train_in_fork(project: Project, seed: int) -> Result | None:
    """Returns the result of a run and prints it, or None if the run fails."""
    with multiprocessing.get_context("fork").Pool(1) as pool:
        try:
            result = pool.apply_async(train, (project, seed)).get(SECONDS)
        except Exception as error:  # noqa: BLE001  # the other projects run nevertheless
            print(f"{project.name}, seed {seed}: failed, {error!r:.200}", flush=True)
            return None
    learned = "learned" if result.learned else "did not learn"
    found = ", ".join(f"{code} (step {step})" for code, step in result.warnings) or "no warnings"
    print(f"{project.name}, seed {seed}: {result.first:.4g} -> {result.last:.4g}, {learned}, {found}", flush=True)
    return result


def print_table(results: dict[str, list[Result]], seeds: int) -> None:
    print("\nproject | runs that learned | runs with a warning | codes")
    for name, runs in results.items():
        learned, warned = sum(run.learned for run in runs), sum(bool(run.warnings) for run in runs)
        codes = Counter(code for run in runs for code in {code for code, _ in run.warnings})
        counts = ", ".join(f"{code} ({count})" for code, count in codes.items())
        print(f"{name} | {learned} of {seeds} | {warned} | {counts}")
    found = [{code for code, _ in run.warnings} for runs in results.values() for run in runs if run.learned]
    others = sum(bool(codes - {"DATA_STARVATION"}) for codes in found)
    print(f"Runs that learned: {len(found)}, with a warning: {sum(map(bool, found))}, except DATA_STARVATION: {others}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="projects to run (default: all)")
    parser.add_argument("--seeds", type=int, default=2, help="number of runs per project (default: %(default)s)")
    parser.add_argument("--list", action="store_true", help="list the projects")
    arguments = parser.parse_args()
    unknown = set(arguments.names) - {project.name for project in PROJECTS}
    if unknown:
        parser.error(f"unknown projects: {', '.join(sorted(unknown))}. See --list.")
    if arguments.list:
        print(*(project.name for project in PROJECTS), sep="\n")
        return
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    results = dict[str, list[Result]]()
    for project in PROJECTS:
        if arguments.names and project.name not in arguments.names:
            continue
        try:
            import_module(project.module)
        except ModuleNotFoundError as error:
            print(f"{project.name}: skipped, {error}", flush=True)
            continue
        runs = [train_in_fork(project, seed) for seed in range(1, arguments.seeds + 1)]
        results[project.name] = [run for run in runs if run is not None]
    print_table(results, arguments.seeds)


if __name__ == "__main__":
    main()
