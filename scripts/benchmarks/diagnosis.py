"""Measures recall and false alarms of TrainingHealth on the programs in diagnosis_bank/.

    pip install -e ".[dev]"
    python scripts/benchmarks/diagnosis.py [--seeds 3] [--only NAME] [--fixed] [--quiet] [--peers] [--jobs 1]
        [--part development|second|third|held_out|fourth|fifth|classifiers]

Only runs whose fault took effect, and healthy runs that learned, are counted. A run is found if it has any warning. The
right cause is first if the first warning names the right problem. The step of a run is the step at which the right
problem was first reported, or any problem if the right one was not. With ``--peers``, the rules of three other tools
(diagnosis_baselines.py) and other tools that are installed (diagnosis_peers.py) judge the same runs, but only those
that return predictions. ``--peers`` prints how to install missing tools. With ``--jobs``, several processes with one
thread each judge runs at the same time. With ``--fixed``, the faulty programs of the parts ``held_out``, ``fourth`` and
``fifth`` run without their faults, as healthy programs.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import logging
import math
import multiprocessing
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass, fields, replace
from functools import partial
from io import StringIO
from pathlib import Path
from statistics import median
from typing import Any

import torch
from scipy.stats import binomtest

sys.path.insert(0, str(Path(__file__).parent))  # where the tests import this file

from diagnosis_bank.program import Outcome, Program, run_program

from stormproof import TrainingHealth
from stormproof.finding import Finding, Severity

PARTS = ("development", "second", "third", "held_out", "fourth", "fifth", "classifiers")


@dataclass(frozen=True)
class Verdict:
    """The findings in one run of a program."""

    program: Program
    seed: int
    returns_dict: bool
    took_effect: bool
    epoch_steps: int
    error: str
    findings: tuple[Finding, ...]

    @property
    def warnings(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.severity != Severity.INFO]

    @property
    def is_found(self) -> bool:
        return bool(self.warnings)

    @property
    def is_right(self) -> bool:
        return bool(self.warnings) and self.warnings[0].problem in self.program.problems

    @property
    def step(self) -> int:
        """Step at which a right problem was first reported, or any problem if no right one was."""
        right = [finding.step for finding in self.warnings if finding.problem in self.program.problems]
        return min(right or [finding.step for finding in self.warnings])


def load_programs(part: str, *, fixed: bool = False) -> list[Program]:
    """Returns the programs of a part. With ``fixed``, returns its faulty programs with the fault removed."""
    programs = list(importlib.import_module(f"diagnosis_bank.{part}").PROGRAMS)
    return [fix_program(program) for program in programs if _is_fixable(program)] if fixed else programs


def _is_fixable(program: Program) -> bool:
    return bool(program.problems) and "is_fixed" in inspect.signature(program.build).parameters


def fix_program(program: Program) -> Program:
    """Returns a faulty program without its fault. Runs in which the effect of the fault remains are not counted."""
    return replace(
        program,
        build=partial(program.build, is_fixed=True),
        problems=frozenset(),
        took_effect=lambda outcome: outcome.error is None and not program.took_effect(outcome),
    )


def _count_epoch_steps(outcome: Outcome) -> int:
    """Returns the number of batches of an epoch. Data sets without a length are counted by the losses of a run."""
    try:
        return len(outcome.fit.train)
    except TypeError:
        return len(outcome.losses) // outcome.fit.trainer.get("max_epochs", 3)


def judge_program(
    program: Program, seed: int, return_dict: bool, monitor: Callable[[], Any] = TrainingHealth
) -> Verdict:
    health = monitor()
    with redirect_stdout(StringIO()):
        outcome: Outcome = run_program(program, seed, return_dict, (health,))
    return Verdict(
        program,
        seed,
        return_dict,
        took_effect=bool(program.took_effect(outcome)),
        epoch_steps=_count_epoch_steps(outcome),
        error="" if outcome.error is None else f"{type(outcome.error).__name__}: {outcome.error}",
        findings=tuple(health.findings),
    )


def judge_runs(runs: list[tuple[Program, int, bool, Callable[[], Any]]], jobs: int) -> Iterator[Verdict]:
    """Yields the verdicts of runs in order, judged by ``jobs`` forked processes if there are several."""
    if jobs == 1:
        yield from (judge_program(*run) for run in runs)
        return

    def judge(tasks: Any, results: Any) -> None:
        torch.set_num_threads(1)
        while (index := tasks.get()) is not None:
            try:
                verdict = judge_program(*runs[index])
            except Exception as error:
                results.put((index, error))
                raise
            values = {field.name: getattr(verdict, field.name) for field in fields(verdict) if field.name != "program"}
            results.put((index, values))

    context = multiprocessing.get_context("fork")  # programs contain functions that cannot be pickled
    tasks, results = context.SimpleQueue(), context.SimpleQueue()
    for index in [*range(len(runs)), *[None] * jobs]:
        tasks.put(index)
    processes = [context.Process(target=judge, args=(tasks, results)) for _ in range(jobs)]
    for process in processes:
        process.start()
    finished: dict[int, Verdict] = {}
    for index in range(len(runs)):
        while index not in finished:
            finished_index, values = results.get()
            if isinstance(values, Exception):  # of another process
                raise RuntimeError(f"{runs[finished_index][0].name} could not be judged") from values  # noqa: TRY004
            finished[finished_index] = Verdict(program=runs[finished_index][0], **values)
        yield finished.pop(index)


def summary_lines(verdicts: Iterable[Verdict]) -> list[str]:
    """Returns the lines that summarize a part."""
    runs = [verdict for verdict in verdicts if verdict.took_effect]
    faulty = [verdict for verdict in runs if verdict.program.problems]
    healthy = [verdict for verdict in runs if not verdict.program.problems]
    found_verdicts = [verdict for verdict in faulty if verdict.is_found]
    within = [verdict for verdict in found_verdicts if verdict.step <= 20]
    by_two = [verdict for verdict in found_verdicts if verdict.step <= 2 * verdict.epoch_steps]
    alarms = [verdict for verdict in healthy if verdict.is_found]
    right = [verdict for verdict in faulty if verdict.is_right]
    precision = len(found_verdicts) / max(len(found_verdicts) + len(alarms), 1)
    step = median([verdict.step for verdict in found_verdicts] or [0])
    return [
        f"faulty runs {len(faulty)}: found {_share(found_verdicts, faulty)}",
        f"by the end of epoch 2 {_share(by_two, faulty)}, within 20 steps {_share(within, faulty)}",
        f"right cause first {_share(right, faulty)}; precision {precision:.3f}; median step {step:.0f}",
        f"healthy runs {len(healthy)}: with a warning {_share(alarms, healthy)}",
        f"programs found in all runs: {_programs(faulty, found_verdicts, every=True)}",
        f"programs found in all runs by the end of epoch 2: {_programs(faulty, by_two, every=True)}",
        f"programs with the right cause first in all runs: {_programs(faulty, right, every=True)}",
        f"healthy programs with a warning in any run: {_programs(healthy, alarms, every=False)}",
    ]


def _programs(runs: list[Verdict], selected: list[Verdict], *, every: bool) -> str:
    """Returns the number of programs of which all or any runs are selected, with a 95% Clopper-Pearson interval.

    The runs of a program are not independent, so the interval counts programs.
    """
    counts = Counter(verdict.program.name for verdict in runs)
    selected_counts = Counter(verdict.program.name for verdict in selected)
    count = sum(selected_counts[name] >= (total if every else 1) for name, total in counts.items())
    if not counts:
        return "none"
    interval = binomtest(count, len(counts)).proportion_ci(method="exact")
    return f"{count} of {len(counts)} [{interval.low:.1%}, {interval.high:.1%}]"


def problem_lines(verdicts: Iterable[Verdict]) -> list[str]:
    """Returns a line for each set of right problems: runs, found runs, median step, and programs that were late."""
    groups: dict[str, list[Verdict]] = {}
    for verdict in verdicts:
        if verdict.took_effect and verdict.program.problems:
            groups.setdefault("/".join(sorted(verdict.program.problems)), []).append(verdict)
    lines = []
    for problems, runs in sorted(groups.items()):
        found = [verdict for verdict in runs if verdict.is_found]
        step = f"{median(verdict.step for verdict in found):.0f}" if found else "none"
        late = {verdict.program.name for verdict in runs if not verdict.is_found or verdict.step > 20}
        late_names = f"; after step 20 or missed: {', '.join(sorted(late))}" if late else ""
        lines.append(f"{problems}: runs {len(runs)}, found {len(found)}, median step {step}{late_names}")
    return lines


def step_lines(verdicts: Iterable[Verdict]) -> list[str]:
    """Returns a line for each problem that was correctly reported first: number of runs, and quantiles of the step."""
    steps: dict[str, list[int]] = {}
    for verdict in verdicts:
        if verdict.took_effect and verdict.program.problems and verdict.is_right:
            steps.setdefault(verdict.warnings[0].problem, []).append(verdict.warnings[0].step)
    return [
        f"{problem}: {len(values)} runs, median step {median(values):.0f}, "
        f"90% by step {sorted(values)[math.ceil(0.9 * len(values)) - 1]}, "
        f"within 20 steps in {sum(value <= 20 for value in values)} runs"
        for problem, values in sorted(steps.items())
    ]


def _share(part: list[Verdict], total: list[Verdict]) -> str:
    return f"{len(part)} ({100 * len(part) / max(len(total), 1):.0f}%)"


def verdict_line(verdict: Verdict) -> str:
    """Returns a line with the expected problems and the findings of a run."""
    expected = "/".join(sorted(verdict.program.problems)) or "healthy"
    reported = ", ".join(f"{finding.problem}@{finding.step}" for finding in verdict.findings) or "nothing"
    good = verdict.is_right if verdict.program.problems else not verdict.is_found
    mark = "  " if not verdict.took_effect else "ok" if good else "!!"
    output_kind = "dict" if verdict.returns_dict else "loss"
    error = f"  [{verdict.error[:90]}]" if verdict.error else ""
    return f"{mark} {verdict.program.name} {verdict.seed} {output_kind}: {expected} <- {reported}{error}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--part", choices=PARTS)
    parser.add_argument("--only", default="")
    parser.add_argument("--fixed", action="store_true", help="judge faulty programs without their faults, if possible")
    parser.add_argument("--quiet", dest="summary_only", action="store_true", help="print only the summaries")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--peers", action="store_true", help="also judge runs that return predictions by other tools")
    arguments = parser.parse_args()
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    monitors: dict[str, Callable[[], Any]] = {"TrainingHealth": TrainingHealth}
    if arguments.peers:
        from diagnosis_baselines import PEERS  # noqa: PLC0415 (importable only if this file runs as a script)
        from diagnosis_peers import installed_peers  # noqa: PLC0415 (likewise)

        monitors |= PEERS | installed_peers()
    all_verdicts = []
    for part in [arguments.part] if arguments.part else PARTS:
        for name, monitor in monitors.items():
            runs = [
                (program, seed, return_dict, monitor)
                for program in load_programs(part, fixed=arguments.fixed)
                if arguments.only in program.name
                for seed in range(arguments.seeds)
                for return_dict in ((True,) if arguments.peers else (True, False))
            ]
            verdicts = []
            for verdict in judge_runs(runs, arguments.jobs):
                verdicts.append(verdict)
                if not arguments.summary_only:
                    print(verdict_line(verdict), flush=True)
            if not arguments.summary_only:
                print(*problem_lines(verdicts), sep="\n")
            print(f"{part}, {name}:", *summary_lines(verdicts), sep="\n  ", flush=True)
            all_verdicts += verdicts if name == "TrainingHealth" else []
    print("steps of correct first findings of TrainingHealth:", *step_lines(all_verdicts), sep="\n  ")


if __name__ == "__main__":
    main()
