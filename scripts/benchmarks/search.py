"""How many steps ASHA needs for what random search finds, and what a search's own work takes.

    python scripts/benchmarks/search.py record [--seeds 10] [--trials 64]
    python scripts/benchmarks/search.py replay
    python scripts/benchmarks/search.py real [--sampler random|tpe] [--seeds 0 1]
    python scripts/benchmarks/search.py overhead [--pruner none|asha] [--trials 4] [--epochs 30]

``record`` trains the configurations that ``search.sampler=random search.seed=s`` proposes, each to its end, and keeps
the losses of all validations in ``--curves``: that is random search. ``replay`` has the same configurations compete at
ASHA's rungs. Nothing is trained anew for it: a run has one outcome, and one that was paused goes on exactly, so what a
configuration would have come to is known. ``real`` runs the command itself, with ``search.pruner=asha`` and one worker;
with the sampler ``random`` it says whether each loss came in the replay's order and to the last bit.

``overhead`` runs a search in this process, as its only worker, and times what it does beside its trials: between them,
and while they wait for an answer. Where it has no pruner, each trial is followed by ``train.py`` with the same words.
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
from stormproof_train.run.metrics_file import read_metrics
from stormproof_train.search.arguments import Composer, read_words
from stormproof_train.search.pruner import Judge
from stormproof_train.search.rungs import Rungs, Standing, fractions_of
from stormproof_train.search.runner import Runner
from stormproof_train.search.trial_command import TrialWords
from stormproof_train.search.trials import Trials
from stormproof_train.search.worker import Worker

TRAIN = Path(__file__).resolve().parents[2] / "train.py"
EPOCHS, STEPS = 27, 18
"""Of a run, and steps of each."""
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
"""Reductions and rungs of a replay; the first is the default."""


class Moment(NamedTuple):
    """A validation in a search: after how many of all its steps, of which trial, at which of that one's epochs."""

    spent: int
    number: int
    epoch: int
    loss: float


def proposals(seed: int, trials: int, folder: Path) -> Iterator[list[str]]:
    """The words of each trial of random search."""
    asked = read_words([*RUN, *SPACE, "search.sampler=random", f"search.seed={seed}"], conf_dir())
    words = TrialWords(asked, Composer(conf_dir()).plan(asked.fixed), "random")
    study = Trials(f"sqlite:///{folder / f'{seed}.db'}", "random", asked.settings, asked.space)
    for number in range(trials):
        yield words.of(study.ask().params, folder / f"{seed}-{number}")


def curve(words: list[str]) -> list[float]:
    """The validation losses of a run, after each epoch."""
    torch.set_num_threads(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    assert command_line.main(words) == 0, words
    values = dict(word.split("=", 1) for word in words if word.startswith(("name=", "runs_dir=")))
    losses = read_metrics(Path(values["runs_dir"].strip("'"), values["name"], "metrics.csv"))["val/loss"]
    return [loss for step, loss in losses if step < EPOCHS * STEPS]  # the last one again is that of the end


def record(given: argparse.Namespace) -> None:
    given.curves.parent.mkdir(parents=True, exist_ok=True)
    kept = json.loads(given.curves.read_text()) if given.curves.exists() else {}
    MNIST1D().load()  # made once, in the process that the others are forked from
    with TemporaryDirectory() as folder:
        seeds = [seed for seed in map(str, range(given.seeds)) if seed not in kept]
        words = {seed: list(proposals(int(seed), given.trials, Path(folder))) for seed in seeds}
        # Only now: what is forked while this process composes a config could compose none.
        with multiprocessing.get_context("fork").Pool(2, maxtasksperchild=1) as pool:
            for seed in seeds:
                begun = time.monotonic()
                kept[seed] = pool.map(curve, words[seed], chunksize=1)
                given.curves.write_text(json.dumps(kept))
                print(f"seed {seed}: {ends_in(kept[seed])}, {time.monotonic() - begun:.0f} s", flush=True)


def ends_in(curves: Sequence[Sequence[float]]) -> str:
    ends = sorted(each[-1] for each in curves if math.isfinite(each[-1]))
    return f"{ends[0]:.4f} at best, {statistics.median(ends):.4f} at median, {len(curves) - len(ends)} not finite"


def replay(curves: Sequence[Sequence[float]], reduction: int, rungs: int) -> Iterator[Moment]:
    """What a search by ASHA with one worker validates, in its order.

    Args:
        curves: of each trial the losses at its end and at equal distances before it.
        reduction: one in so many goes on.
        rungs: before the end.
    """
    ladder = Rungs(fractions_of(rungs, reduction), reduction)
    length = len(curves[0])
    seen, passed, paused, spent = [0] * len(curves), [0] * len(curves), [False] * len(curves), 0

    def standings() -> list[Standing]:
        return [
            Standing(
                number,
                {(place + 1) / length: finite(loss) for place, loss in enumerate(curves[number][: seen[number]])},
                passed[number],
                paused[number],
                seen[number] == length,
                seen[number] == length,
            )
            for number in range(len(curves))
            if seen[number]
        ]

    def next_one() -> tuple[int, bool] | None:
        if waiting := ladder.promotable(standings()):
            return waiting[0], False
        if 0 in seen:
            return seen.index(0), False
        return next(((number, True) for number in ladder.promotable(standings(), closed=True)), None)

    while (taken := next_one()) is not None:
        number, closed = taken
        if seen[number]:
            passed[number], _ = ladder.climb(standings(), number, closed=closed)
        paused[number] = False
        while seen[number] < length and not paused[number]:
            seen[number] += 1
            spent += STEPS
            yield Moment(spent, number, seen[number], curves[number][seen[number] - 1])
            if seen[number] < length:
                passed[number], paused[number] = ladder.climb(standings(), number)


def finite(loss: float) -> float:
    return loss if math.isfinite(loss) else math.inf


def place_of_best(curves: Sequence[Sequence[float]]) -> int:
    """Which trial is random search's best."""
    return min(range(len(curves)), key=lambda number: finite(curves[number][-1]))


def best_at_end(curves: Sequence[Sequence[float]]) -> float:
    """What random search finds."""
    return curves[place_of_best(curves)][-1]


def share(moments: Sequence[Moment], target: float, steps: int, *, at_end: bool) -> float:
    """After which share of some steps a loss is as good as a target; inf if none is."""
    good = (each.spent for each in moments if each.loss <= target and (each.epoch == EPOCHS or not at_end))
    return next(good, math.inf) / steps


def compared(given: argparse.Namespace) -> None:
    kept = json.loads(given.curves.read_text())
    first = [(place_of_best(curves) + 1) / len(curves) for curves in kept.values()]
    print(f"of its own steps random search had taken {ranged(first)} when it found its best")
    print("| reduction, rungs | as good in flight | as good at an end | reached by | all steps |\n|" + " --- |" * 5)
    for reduction, rungs in SETTINGS:
        of_seed = []
        for curves in kept.values():
            steps = len(curves) * EPOCHS * STEPS
            moments = list(replay(curves, reduction, rungs))
            found = [share(moments, best_at_end(curves), steps, at_end=at_end) for at_end in (False, True)]
            of_seed.append((*found, moments[-1].spent / steps))
        in_flight, at_end, all_steps = zip(*of_seed, strict=True)
        reached = sum(map(math.isfinite, at_end))
        columns = (f"{reduction}, {rungs}", ranged(in_flight), ranged(at_end), f"{reached} of {len(kept)}")
        print(f"| {' | '.join(columns)} | {ranged(all_steps)} |")


def ranged(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.3f} ({min(values):.3f}, {max(values):.3f})"


def validations(search: Path) -> list[Moment]:
    """What a search with one worker has validated, in its order."""
    rows = []
    for run in sorted((search / "trials").iterdir()):
        table = pd.read_csv(run / "metrics.csv", dtype={"value": str})
        losses = table[(table["name"] == "val/loss") & (table["step"] < EPOCHS * STEPS)]
        number = int(run.name.removeprefix("trial-"))
        columns = (losses[name].tolist() for name in ("time", "step", "value"))
        rows += [(moment, number, step, float(value)) for moment, step, value in zip(*columns, strict=True)]
    epochs = [(number, (step + 1) // STEPS, loss) for _, number, step, loss in sorted(rows)]
    return [Moment(place * STEPS, *each) for place, each in enumerate(epochs, start=1)]


def real(given: argparse.Namespace) -> None:
    kept = json.loads(given.curves.read_text())
    for seed in given.seeds:
        curves = kept[str(seed)]
        steps = len(curves) * EPOCHS * STEPS
        with TemporaryDirectory() as folder:
            own = [f"search.folder={folder}", "search.name=real", "search.pruner=asha", "search.final_seeds=0"]
            own += [f"search.sampler={given.sampler}", f"search.seed={seed}", f"search.trials={len(curves)}"]
            words = [sys.executable, TRAIN, "search", *RUN, RECOVERY, *SPACE, *own]
            begun = time.monotonic()
            subprocess.run(words, check=True, stdout=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"})
            moments = validations(Path(folder, "real"))
        found = [share(moments, best_at_end(curves), steps, at_end=at_end) for at_end in (False, True)]
        told = f"{found[0]:.3f} in flight, {found[1]:.3f} at an end, {moments[-1].spent / steps:.3f} in all"
        if given.sampler == "random":
            told += f"; as replayed: {list(replay(curves, *SETTINGS[0])) == moments}"
        print(f"{given.sampler}, seed {seed}: {told}, {time.monotonic() - begun:.0f} s", flush=True)


class Clock:
    """Adds up wall and CPU seconds of this process in some of its functions, and the calls."""

    def __init__(self) -> None:
        self.wall: dict[str, list[float]] = defaultdict(list)
        self.cpu: dict[str, float] = defaultdict(float)

    def watch(self, owner: Any, name: str, after: Callable[..., None] | None = None) -> None:
        """Times a function; ``after`` is called behind it with the same arguments, and is not timed."""
        function = getattr(owner, name)

        @functools.wraps(function)
        def timed(*arguments: Any, **named: Any) -> Any:
            begun, before = time.perf_counter(), time.process_time()
            try:
                return function(*arguments, **named)
            finally:
                self.wall[name].append(time.perf_counter() - begun)
                self.cpu[name] += time.process_time() - before
                if after is not None:
                    after(*arguments, **named)

        setattr(owner, name, timed)


def overhead(given: argparse.Namespace) -> None:
    clock, plain, own_seconds = Clock(), [], []

    def train_alone(_: Runner, job: str, words: Sequence[str], run: Path, *_others: Any) -> None:
        if given.pruner != "none" or not job.startswith("trial-"):
            return
        words = [word for word in words if not word.startswith(("callbacks.search.", "runs_dir="))]
        begun = time.perf_counter()
        words = [sys.executable, str(TRAIN), *words, f"runs_dir={folder}/alone"]
        subprocess.run(words, check=True, capture_output=True)
        plain.append(time.perf_counter() - begun)
        own_seconds.append((seconds_of(run), seconds_of(Path(folder, "alone", run.name))))

    clock.watch(Runner, "run", after=train_alone)
    for owner, name in ((Judge, "answer"), (Worker, "work"), (command_line, "main")):
        clock.watch(owner, name)
    with TemporaryDirectory() as folder:
        own = [f"search.folder={folder}", "search.name=timed", f"search.pruner={given.pruner}", "search.final_seeds=0"]
        own += ["search.sampler=random", f"search.trials={given.trials}", "optimizer.lr=tag(log,interval(1e-3,1e-2))"]
        assert command_line.main(["search", *LONG_RUN, f"trainer.max_epochs={given.epochs}", *own]) == 0
    *runs, test = clock.wall["run"]
    (work,), (whole,), answers = clock.wall["work"], clock.wall["main"], clock.wall["answer"]
    between = work - sum(runs) - sum(plain)
    print(f"{len(runs)} starts of {given.trials} trials, {sum(runs):.1f} s, each {ranged(runs)} s")
    print(f"of the worker: {between / len(runs):.3f} s between two, {len(answers)} answers of {ranged(answers)} s")
    print(f"its share: {(between + sum(answers)) / sum(runs):.4f}, its CPU time: {clock.cpu['work'] / sum(runs):.4f}")
    print(f"once in a search: {whole - work - test:.2f} s before its first trial and for its report")
    if plain:
        print(f"trial / train.py: {ranged([one / other for one, other in zip(runs, plain, strict=True)])}")
        starts = [one - own for one, (own, _) in zip(runs, own_seconds, strict=True)]
        alone = [other - own for other, (_, own) in zip(plain, own_seconds, strict=True)]
        print(f"before and after the training: {ranged(starts)} s in a trial, {ranged(alone)} s by train.py")


def seconds_of(run: Path) -> float:
    """A run's own seconds: its training and its validation, without its start."""
    summary = RunFolder(run.parent, run.name).finished()
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
    run.set_defaults(run=real)
    timed = commands.add_parser("overhead")
    timed.add_argument("--pruner", choices=("none", "asha"), default="none")
    timed.add_argument("--trials", type=int, default=4)
    timed.add_argument("--epochs", type=int, default=30)
    timed.set_defaults(run=overhead)
    given = parser.parse_args()
    given.run(given)


if __name__ == "__main__":
    main()
