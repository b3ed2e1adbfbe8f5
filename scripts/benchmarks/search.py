"""Measures how many steps ASHA needs to match random search, and the overhead of a search.

    python scripts/benchmarks/search.py record [--seeds 10] [--trials 64]
    python scripts/benchmarks/search.py replay
    python scripts/benchmarks/search.py real [--sampler random|tpe] [--seeds 0 1]
    python scripts/benchmarks/search.py overhead [--pruner none|asha] [--trials 4] [--epochs 30]

``record`` trains the configurations that ``search.sampler=random search.seed=s`` proposes, each to its end, and saves
all validation losses in ``--curves``. This is random search. ``replay`` simulates ASHA on the same configurations. It
trains nothing: runs are deterministic and paused runs resume exactly, so the recorded losses are those of ASHA.
``real`` runs the command with ``search.pruner=asha`` and one worker. With the sampler ``random``, it reports whether
all losses and their order are bit-identical to the replay.

``overhead`` runs a search in this process as its only worker. It measures the time between trials and the time in which
trials wait for an answer. Without a pruner, each trial is followed by ``train.py`` with the same settings.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import multiprocessing
import os
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import pandas as pd
import torch

from stormproof_train.cli import main as command_line
from stormproof_train.config.conf_dir import conf_dir
from stormproof_train.data.mnist1d import MNIST1D
from stormproof_train.run.folder import RunFolder
from stormproof_train.run.metrics_rows import read_metrics
from stormproof_train.search.arguments import Composer, parse_arguments
from stormproof_train.search.pruner import TrialPruner
from stormproof_train.search.rungs import Rungs, TrialStatus, rung_fractions
from stormproof_train.search.runner import Runner
from stormproof_train.search.trial_command import TrialCommand
from stormproof_train.search.trials import TrialStore
from stormproof_train.search.worker import Worker

TRAIN = Path(__file__).resolve().parents[2] / "train.py"
EPOCHS, STEPS = 27, 18
"""Epochs per run and steps per epoch."""
RUN = [
    "data=mnist1d", "data.batch_size=200", "trainer=cpu", f"trainer.max_epochs={EPOCHS}", "logger=none",
    "callbacks=none",
]  # fmt: skip
LONG_RUN = ["data=mnist1d", "model=cnn", "trainer=cpu", "logger=none"]
RECOVERY = "callbacks.recovery._target_=stormproof.CheckpointRecovery"
SPACE = [
    "activation=relu,gelu,tanh,sigmoid", "optimizer.lr=tag(log,interval(1e-4,1.0))", "model.dropout=interval(0.0,0.5)",
    "optimizer.weight_decay=tag(log,interval(1e-5,1.0))", "model.width=tag(log,int(interval(16,256)))",
]  # fmt: skip
SETTINGS = [(3, 3), (3, 2), (4, 2), (2, 4)]
"""Reduction factors and numbers of rungs of the replays. The first pair is the default."""


class Moment(NamedTuple):
    """A validation in a search.

    Attributes:
        spent: Training steps of the whole search until then.
        number: Number of the trial.
        epoch: Epoch of the trial.
        loss: Validation loss.
    """

    spent: int
    number: int
    epoch: int
    loss: float


def propose_overrides(seed: int, trials: int, folder: Path) -> Iterator[list[str]]:
    """Yields the overrides of each trial of random search."""
    arguments = parse_arguments([*RUN, *SPACE, "search.sampler=random", f"search.seed={seed}"], conf_dir())
    trial_command = TrialCommand(arguments, Composer(conf_dir()).compose_plan(arguments.fixed_overrides), "random")
    study = TrialStore(f"sqlite:///{folder / f'{seed}.db'}", "random", arguments.settings, arguments.space)
    for number in range(trials):
        yield trial_command.build(study.ask().params, folder / f"{seed}-{number}")


def train_curve(overrides: list[str]) -> list[float]:
    """Trains a run and returns its validation loss after each epoch."""
    torch.set_num_threads(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    assert command_line.main(overrides) == 0, overrides
    values = dict(word.split("=", 1) for word in overrides if word.startswith(("name=", "runs_dir=")))
    losses = read_metrics(Path(values["runs_dir"].strip("'"), values["name"], "metrics.csv"))["val/loss"]
    return [loss for step, loss in losses if step < EPOCHS * STEPS]  # the last value repeats the final validation


def record(arguments: argparse.Namespace) -> None:
    arguments.curves.parent.mkdir(parents=True, exist_ok=True)
    saved_curves = json.loads(arguments.curves.read_text()) if arguments.curves.exists() else {}
    MNIST1D().load()  # generated once, before the fork
    with TemporaryDirectory() as folder:
        seeds = [seed for seed in map(str, range(arguments.seeds)) if seed not in saved_curves]
        overrides_by_seed = {seed: list(propose_overrides(int(seed), arguments.trials, Path(folder))) for seed in seeds}
        # Forks after all configs are composed: a process forked during composition could not compose another config.
        with multiprocessing.get_context("fork").Pool(2, maxtasksperchild=1) as pool:
            for seed in seeds:
                start = time.monotonic()
                saved_curves[seed] = pool.map(train_curve, overrides_by_seed[seed], chunksize=1)
                arguments.curves.write_text(json.dumps(saved_curves))
                print(f"seed {seed}: {endings(saved_curves[seed])}, {time.monotonic() - start:.0f} s", flush=True)


def endings(curves: Sequence[Sequence[float]]) -> str:
    ends = sorted(losses[-1] for losses in curves if math.isfinite(losses[-1]))
    return f"{ends[0]:.4f} at best, {statistics.median(ends):.4f} at median, {len(curves) - len(ends)} not finite"


def replay(curves: Sequence[Sequence[float]], reduction: int, rungs: int) -> Iterator[Moment]:
    """Yields the validations of an ASHA search with one worker, in order.

    Args:
        curves: Validation losses of each trial at equal intervals, up to its end.
        reduction: Reduction factor: one in ``reduction`` trials is promoted.
        rungs: Number of rungs before the end.
    """
    ladder = Rungs(rung_fractions(rungs, reduction), reduction)
    length = len(curves[0])
    validations_done, passed, paused, spent = [0] * len(curves), [0] * len(curves), [False] * len(curves), 0

    def statuses() -> list[TrialStatus]:
        return [
            TrialStatus(
                number,
                {
                    (index + 1) / length: finite(loss)
                    for index, loss in enumerate(curves[number][: validations_done[number]])
                },
                passed[number],
                paused[number],
                validations_done[number] == length,
                validations_done[number] == length,
            )
            for number in range(len(curves))
            if validations_done[number]
        ]

    def next_one() -> tuple[int, bool] | None:
        if waiting := ladder.find_promotable(statuses()):
            return waiting[0], False
        if 0 in validations_done:
            return validations_done.index(0), False
        return next(((number, True) for number in ladder.find_promotable(statuses(), promote_at_least_one=True)), None)

    while (taken := next_one()) is not None:
        number, closed = taken
        if validations_done[number]:
            passed[number], _ = ladder.advance(statuses(), number, promote_at_least_one=closed)
        paused[number] = False
        while validations_done[number] < length and not paused[number]:
            validations_done[number] += 1
            spent += STEPS
            yield Moment(spent, number, validations_done[number], curves[number][validations_done[number] - 1])
            if validations_done[number] < length:
                passed[number], paused[number] = ladder.advance(statuses(), number)


def finite(loss: float) -> float:
    return loss if math.isfinite(loss) else math.inf


def place_of_best(curves: Sequence[Sequence[float]]) -> int:
    """Returns the number of the best trial of random search."""
    return min(range(len(curves)), key=lambda number: finite(curves[number][-1]))


def best_at_end(curves: Sequence[Sequence[float]]) -> float:
    """Returns the final loss of the best trial of random search."""
    return curves[place_of_best(curves)][-1]


def share(moments: Sequence[Moment], target: float, steps: int, *, at_end: bool) -> float:
    """Returns the share of ``steps`` after which a loss reaches ``target``, or inf."""
    good = (moment.spent for moment in moments if moment.loss <= target and (moment.epoch == EPOCHS or not at_end))
    return next(good, math.inf) / steps


def compared(arguments: argparse.Namespace) -> None:
    saved_curves = json.loads(arguments.curves.read_text())
    first = [(place_of_best(curves) + 1) / len(curves) for curves in saved_curves.values()]
    print(f"share of the steps of random search until its best trial ended: {ranged(first)}")
    print("| reduction, rungs | target at any epoch | target at an end | reached by | all steps |\n|" + " --- |" * 5)
    for reduction, rungs in SETTINGS:
        of_seed = []
        for curves in saved_curves.values():
            steps = len(curves) * EPOCHS * STEPS
            moments = list(replay(curves, reduction, rungs))
            shares = [share(moments, best_at_end(curves), steps, at_end=at_end) for at_end in (False, True)]
            of_seed.append((*shares, moments[-1].spent / steps))
        in_flight, at_end, all_steps = zip(*of_seed, strict=True)
        reached = sum(map(math.isfinite, at_end))
        columns = (f"{reduction}, {rungs}", ranged(in_flight), ranged(at_end), f"{reached} of {len(saved_curves)}")
        print(f"| {' | '.join(columns)} | {ranged(all_steps)} |")


def ranged(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.3f} ({min(values):.3f}, {max(values):.3f})"


def validations(search: Path) -> list[Moment]:
    """Returns the validations of a finished search with one worker, in order."""
    rows = []
    for run in sorted((search / "trials").iterdir()):
        table = pd.read_csv(run / "metrics.csv", dtype={"value": str})
        losses = table[(table["name"] == "val/loss") & (table["step"] < EPOCHS * STEPS)]
        number = int(run.name.removeprefix("trial-"))
        columns = (losses[name].tolist() for name in ("time", "step", "value"))
        rows += [(moment, number, step, float(value)) for moment, step, value in zip(*columns, strict=True)]
    epochs = [(number, (step + 1) // STEPS, loss) for _, number, step, loss in sorted(rows)]
    return [Moment(index * STEPS, *validation) for index, validation in enumerate(epochs, start=1)]


def run_real_search(arguments: argparse.Namespace) -> None:
    saved_curves = json.loads(arguments.curves.read_text())
    for seed in arguments.seeds:
        curves = saved_curves[str(seed)]
        steps = len(curves) * EPOCHS * STEPS
        with TemporaryDirectory() as folder:
            fixed_overrides = [
                f"search.folder={folder}",
                "search.name=real",
                "search.pruner=asha",
                "search.final_seeds=0",
            ]
            fixed_overrides += [
                f"search.sampler={arguments.sampler}",
                f"search.seed={seed}",
                f"search.trials={len(curves)}",
            ]
            command = [sys.executable, TRAIN, "search", *RUN, RECOVERY, *SPACE, *fixed_overrides]
            start = time.monotonic()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"})
            moments = validations(Path(folder, "real"))
        shares = [share(moments, best_at_end(curves), steps, at_end=at_end) for at_end in (False, True)]
        report = f"{shares[0]:.3f} at any epoch, {shares[1]:.3f} at an end, {moments[-1].spent / steps:.3f} in total"
        if arguments.sampler == "random":
            report += f"; equal to the replay: {list(replay(curves, *SETTINGS[0])) == moments}"
        print(f"{arguments.sampler}, seed {seed}: {report}, {time.monotonic() - start:.0f} s", flush=True)


class Clock:
    """Records the wall and CPU seconds that this process spends in chosen functions."""

    def __init__(self) -> None:
        self.wall: dict[str, list[float]] = defaultdict(list)
        self.cpu: dict[str, float] = defaultdict(float)

    def watch(self, key: str, owner: Any, name: str, after: Callable[..., None] | None = None) -> None:
        """Measures a function under ``key``. ``after`` is called after it with its arguments and is not measured."""
        function = getattr(owner, name)

        @functools.wraps(function)
        def timed(*arguments: Any, **named: Any) -> Any:
            begun, before = time.perf_counter(), time.process_time()
            try:
                return function(*arguments, **named)
            finally:
                self.wall[key].append(time.perf_counter() - begun)
                self.cpu[key] += time.process_time() - before
                if after is not None:
                    after(*arguments, **named)

        setattr(owner, name, timed)


def overhead(arguments: argparse.Namespace) -> None:
    clock, plain, own_seconds = Clock(), [], []

    def train_separately(_: Runner, job: str, overrides: Sequence[str], run: Path, *_others: Any) -> None:
        if arguments.pruner != "none" or not job.startswith("trial-"):
            return
        overrides = [word for word in overrides if not word.startswith(("callbacks.search.", "runs_dir="))]
        begun = time.perf_counter()
        overrides = [sys.executable, str(TRAIN), *overrides, f"runs_dir={folder}/separate"]
        subprocess.run(overrides, check=True, capture_output=True)
        plain.append(time.perf_counter() - begun)
        own_seconds.append((seconds_of(run), seconds_of(Path(folder, "separate", run.name))))

    clock.watch("run", Runner, "run", after=train_separately)
    clock.watch("answer", TrialPruner, "handle_message")
    clock.watch("work", Worker, "run")
    clock.watch("main", command_line, "main")
    with TemporaryDirectory() as folder:
        own_time = [
            f"search.folder={folder}",
            "search.name=timed",
            f"search.pruner={arguments.pruner}",
            "search.final_seeds=0",
        ]
        own_time += [
            "search.sampler=random",
            f"search.trials={arguments.trials}",
            "optimizer.lr=tag(log,interval(1e-3,1e-2))",
        ]
        assert command_line.main(["search", *LONG_RUN, f"trainer.max_epochs={arguments.epochs}", *own_time]) == 0
    *runs, test = clock.wall["run"]
    (work,), (whole,), answers = clock.wall["work"], clock.wall["main"], clock.wall["answer"]
    between = work - sum(runs) - sum(plain)
    print(f"{len(runs)} starts of {arguments.trials} trials, {sum(runs):.1f} s, each {ranged(runs)} s")
    print(f"worker: {between / len(runs):.3f} s between two trials, {len(answers)} answers of {ranged(answers)} s")
    print(f"share: {(between + sum(answers)) / sum(runs):.4f}, CPU time: {clock.cpu['work'] / sum(runs):.4f}")
    print(f"once per search: {whole - work - test:.2f} s before the first trial and for the report")
    if plain:
        print(
            f"trial / train.py: "
            f"{ranged([run_time / plain_time for run_time, plain_time in zip(runs, plain, strict=True)])}"
        )
        starts = [run_time - own_time for run_time, (own_time, _) in zip(runs, own_seconds, strict=True)]
        separate = [plain_time - own_time for plain_time, (_, own_time) in zip(plain, own_seconds, strict=True)]
        print(f"before and after training: {ranged(starts)} s in a trial, {ranged(separate)} s in train.py")


def seconds_of(run: Path) -> float:
    """Returns the seconds of training and validation of a run, without its start."""
    summary = RunFolder(run.parent, run.name).read_summary()
    assert summary is not None
    return summary["seconds"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--curves", type=Path, default=Path("runs/search_curves.json"))
    commands = parser.add_subparsers(required=True)
    recorded = commands.add_parser("record")
    recorded.add_argument("--seeds", type=int, default=10)
    recorded.add_argument("--trials", type=int, default=64)
    recorded.set_defaults(run=record)
    commands.add_parser("replay").set_defaults(run=compared)
    run = commands.add_parser("real")
    run.add_argument("--sampler", choices=("random", "tpe"), default="random")
    run.add_argument("--seeds", type=int, nargs="+", default=[0])
    run.set_defaults(run=run_real_search)
    timed = commands.add_parser("overhead")
    timed.add_argument("--pruner", choices=("none", "asha"), default="none")
    timed.add_argument("--trials", type=int, default=4)
    timed.add_argument("--epochs", type=int, default=30)
    timed.set_defaults(run=overhead)
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
