"""Checks whether a statement about a command is possible, and states in one sentence why not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from stormproof.replay.certification import Result
from stormproof.replay.command_run import Ending
from stormproof.replay.comparison.causes import find_causes, kind_of
from stormproof.replay.comparison.history import Histories
from stormproof.replay.comparison.step_difference import StepDifference, step_differences
from stormproof.replay.comparison.verdict import Outcome, VerdictKind
from stormproof.replay.faults.plan import resumable_steps
from stormproof.replay.not_certifiable import NotCertifiable
from stormproof.replay.output_text import escape


def check_reference(histories: Histories, ending: Ending, message: str) -> None:
    """Checks the uninterrupted run.

    Args:
        histories: The run, by rank.
        ending: How it ended.
        message: Last line of its output.

    Raises:
        NotCertifiable: If the command fails or hangs, does not train or never saves, or the recorder failed.
    """
    if ending.hung:
        raise NotCertifiable("The command makes no progress, even without a fault. Raise --timeout if it is slow.")
    if ending.code != 0:
        raise NotCertifiable(f"The command fails without a fault (exit code {ending.code}): {message}")
    first = histories.get(min(histories, default=0))
    errors = [error for history in histories.values() for error in history.errors]
    if errors:
        raise NotCertifiable(f"The recorder failed in {errors[0].where}: {errors[0].message}. Report this as a bug.")
    if first is None or not first.steps:
        raise NotCertifiable("The command does not train: no step of a torch optimizer was recorded.")
    if not any(resumable_steps(history) for history in histories.values()) and first.loads:
        raise NotCertifiable(
            f"The command loads {escape(first.loads[-1].path)} and saves nothing between its first and its last step. "
            "Remove the checkpoints of earlier runs, save more often, or certify a longer run."
        )
    if not any(save.phase != "open" for history in histories.values() for save in history.saves):
        raise NotCertifiable("The command saves no checkpoint in its working folder. Other folders are not recorded.")
    if not any(resumable_steps(history) for history in histories.values()):
        raise NotCertifiable(
            f"The command saves no checkpoint between its first and its last step ({len(first.steps)} steps). "
            "Save more often, or certify a longer run."
        )


def find_recorder_error(outcome: Outcome) -> str:
    """Returns why the ledgers of a fault cannot be compared, or an empty string."""
    histories = [*outcome.attempt.values(), *outcome.restarted.values()]
    errors = [error for history in histories for error in history.errors]
    if errors:
        return f"the recorder failed in {errors[0].where}: {errors[0].message}"
    algorithms = frozenset[str]().union(
        *(history.hash_algorithms for history in (*outcome.reference.values(), *histories))
    )
    return "xxhash is installed for only some processes, so hashes cannot be compared" if len(algorithms) > 1 else ""


def check_resume(results: Sequence[Result]) -> None:
    """Checks the restarted runs.

    Raises:
        NotCertifiable: If no restarted command resumed from a checkpoint, or if there is no result.
    """
    if not results:
        raise NotCertifiable("No fault could be injected. Raise --budget, or pass other kinds with --faults.")
    could_resume = [result.verdict for result in results if not result.verdict.is_exact or result.verdict.resumed_step]
    ignores = all(
        verdict.kind is VerdictKind.FROM_SCRATCH and verdict.compared_steps and not verdict.loaded
        for verdict in could_resume
    )
    if not could_resume:
        raise NotCertifiable(
            "No restart resumed from a checkpoint: each fault occurred before or shortly after the first save. "
            "Save more often, or certify a longer run."
        )
    if ignores:
        raise NotCertifiable(
            "The command ignores its checkpoints: every restart begins at step 1 and loads no checkpoint. "
            "Pass the command that resumes with --resume-command."
        )


_ESSENTIAL = frozenset({"parameters", "data/batches", "data/indices", "loss", "gradients", "before/parameters"})
"""Kinds that a deterministic command repeats."""


@dataclass(frozen=True, slots=True)
class Determinism:
    """Result of a comparison of two uninterrupted runs.

    Attributes:
        ignored: Components that differ and are not essential, without ``before/``.
        step: First step at which an essential component differs. None if the command is deterministic.
        component: Component that explains this difference.
        rank: Rank on which it differs.
    """

    ignored: frozenset[str] = frozenset()
    step: int | None = None
    component: str = ""
    rank: int = 0

    @property
    def is_deterministic(self) -> bool:
        """True if the essential components are equal at all steps."""
        return self.step is None


def compare_uninterrupted(first: Histories, second: Histories) -> Determinism:
    """Compares all steps of two uninterrupted runs."""
    ignored, essential = set[str](), list[tuple[StepDifference, int]]()
    for rank, history in first.items():
        other = second.get(rank)
        if other is None or len(other.steps) != len(history.steps):
            steps = min(len(history.steps), len(other.steps) if other else 0)
            return Determinism(step=steps + 1, component="length", rank=rank)
        for difference in step_differences(history, other):
            if not essential and not _ESSENTIAL.isdisjoint({kind_of(name) for name in difference.components}):
                essential.append((difference, rank))
            ignored |= {name.removeprefix("before/") for name in difference.components}
    if not essential:
        return Determinism(frozenset(ignored))
    difference, rank = min(essential, key=lambda item: item[0].step)
    causes = find_causes(first[rank], second[rank], 0, difference)
    return Determinism(frozenset(ignored), difference.step, causes.first, rank)
