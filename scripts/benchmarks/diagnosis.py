"""How much of what goes wrong TrainingHealth finds, and how often it is wrong: the programs of diagnosis_bank/.

    pip install -e ".[dev]"
    python scripts/benchmarks/diagnosis.py [--seeds 3] [--part development|second|third|held_back] [--only NAME]
        [--quiet] [--peers]

Counted are runs whose fault struck (or that were healthy), by what happened in them. Found is one with any warning; of
the right cause first, one whose first finding is the right problem. Its step is that at which the right one, or else
any, was first reported. With ``--peers`` the rules of three others judge the same runs, those that return predictions;
see peers_of_diagnosis.py.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import sys
import warnings
from collections.abc import Callable, Iterable
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))  # where the tests import this file

from diagnosis_bank.program import Outcome, Program, run

from stormproof import TrainingHealth
from stormproof.finding import Finding, Severity

PARTS = ("development", "second", "third", "held_back")


@dataclass(frozen=True)
class Verdict:
    """What was said of a run of a program."""

    program: Program
    seed: int
    tells: bool
    struck: bool
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
        """When a right problem was first reported; of none, when any was."""
        right = [finding.step for finding in self.warnings if finding.problem in self.program.problems]
        return min(right or [finding.step for finding in self.warnings])


def programs_of(part: str) -> list[Program]:
    return list(importlib.import_module(f"diagnosis_bank.{part}").PROGRAMS)


def judge(program: Program, seed: int, tells: bool, monitor: Callable[[], Any] = TrainingHealth) -> Verdict:
    health = monitor()
    with redirect_stdout(StringIO()):
        outcome: Outcome = run(program, seed, tells, (health,))
    return Verdict(
        program,
        seed,
        tells,
        struck=bool(program.struck(outcome)),
        epoch_steps=len(outcome.fit.train),
        error="" if outcome.error is None else f"{type(outcome.error).__name__}: {outcome.error}",
        findings=tuple(health.findings),
    )


def table(verdicts: Iterable[Verdict]) -> list[str]:
    """The lines that sum up a part."""
    runs = [each for each in verdicts if each.struck]
    faulty = [each for each in runs if each.program.problems]
    healthy = [each for each in runs if not each.program.problems]
    found = [each for each in faulty if each.is_found]
    within = [each for each in found if each.step <= 20]
    by_two = [each for each in found if each.step <= 2 * each.epoch_steps]
    alarms = [each for each in healthy if each.is_found]
    right = [each for each in faulty if each.is_right]
    precision = len(found) / max(len(found) + len(alarms), 1)
    step = median([each.step for each in found] or [0])
    return [
        f"faulty runs {len(faulty)}: found {_share(found, faulty)}",
        f"by the end of epoch 2 {_share(by_two, faulty)}, within 20 steps {_share(within, faulty)}",
        f"right cause first {_share(right, faulty)}; precision {precision:.3f}; median step {step:.0f}",
        f"healthy runs {len(healthy)}: with a warning {_share(alarms, healthy)}",
    ]


def _share(part: list[Verdict], whole: list[Verdict]) -> str:
    return f"{len(part)} ({100 * len(part) / max(len(whole), 1):.0f}%)"


def line(verdict: Verdict) -> str:
    """What was said of a run."""
    expected = "/".join(sorted(verdict.program.problems)) or "healthy"
    said = ", ".join(f"{each.problem}@{each.step}" for each in verdict.findings) or "nothing"
    good = verdict.is_right if verdict.program.problems else not verdict.is_found
    mark = "  " if not verdict.struck else "ok" if good else "!!"
    told = "told" if verdict.tells else "bare"
    error = f"  [{verdict.error[:90]}]" if verdict.error else ""
    return f"{mark} {verdict.program.name} {verdict.seed} {told}: {expected} <- {said}{error}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--part", choices=PARTS)
    parser.add_argument("--only", default="")
    parser.add_argument("--quiet", action="store_true", help="only the sums")
    parser.add_argument("--peers", action="store_true", help="the rules of others too, where predictions are returned")
    words = parser.parse_args()
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    monitors: dict[str, Callable[[], Any]] = {"TrainingHealth": TrainingHealth}
    if words.peers:
        from peers_of_diagnosis import PEERS  # noqa: PLC0415 (beside this script, found where it is one)

        monitors |= PEERS
    for part in [words.part] if words.part else PARTS:
        for name, monitor in monitors.items():
            verdicts = []
            for program in (each for each in programs_of(part) if words.only in each.name):
                for seed in range(words.seeds):
                    for tells in (True,) if words.peers else (True, False):
                        verdicts.append(judge(program, seed, tells, monitor))
                        if not words.quiet:
                            print(line(verdicts[-1]), flush=True)
            print(f"{part}, {name}:", *table(verdicts), sep="\n  ")


if __name__ == "__main__":
    main()
