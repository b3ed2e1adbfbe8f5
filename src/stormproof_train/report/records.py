"""Defines the numbers that reports show and ``--json`` prints."""

from __future__ import annotations

from typing import Any, TypedDict

from stormproof.finding import FindingRecord
from stormproof_train.config.identity import SettingRecord
from stormproof_train.evaluation.records import Comparison
from stormproof_train.report.attempts import AttemptSummary
from stormproof_train.report.evaluation_plots import PlottedEvaluation
from stormproof_train.report.layers import LayerCells
from stormproof_train.report.metric_curves import CurveSummary
from stormproof_train.report.times import StepTimes
from stormproof_train.run.records import RunSummary


class Verdict(TypedDict):
    """Outcome of a run.

    Attributes:
        tone: ``good``, ``doubtful`` or ``bad``; ``open`` if the run has not ended for good.
        sentences: How it ended, its active findings, and the comparison with the baselines.
    """

    tone: str
    sentences: list[str]


class ReportedFinding(FindingRecord):
    """A finding on the page of a run.

    Attributes:
        active: Whether the finding is active.
        curves: Curves that show its evidence, by logged name.
    """

    active: bool
    curves: dict[str, CurveSummary]


class RunNumbers(TypedDict):
    """The numbers of one run.

    Attributes:
        name: Name of the run.
        folder: Path of its folder.
        status: Status in ``run.json``, or ``gone`` if its process is gone.
        last_step: Last known step.
        verdict: Outcome of the run.
        summary: Content of ``summary.json``. None before the run finishes.
        curves: Curves by logged name.
        findings: All findings, in the order of their report.
        layers: Heat maps by group of logged names.
        time: None if no steps were timed.
        attempts: Attempts, oldest first.
        evaluation: Content of ``evaluation.json`` with plot data. None if the file is missing.
        settings: Values by dotted key.
        changed: Settings that differ from the default.
    """

    name: str
    folder: str
    status: str
    last_step: int
    verdict: Verdict
    summary: RunSummary | None
    curves: dict[str, CurveSummary]
    findings: list[ReportedFinding]
    layers: dict[str, LayerCells]
    time: StepTimes | None
    attempts: list[AttemptSummary]
    evaluation: PlottedEvaluation | None
    settings: dict[str, Any]
    changed: list[SettingRecord]


class ComparedRun(TypedDict):
    """One of several runs.

    Attributes:
        label: Name of the run, or its folder if names repeat.
        folder: Path of its folder.
        status: Status in ``run.json``, or ``gone`` if its process is gone.
        verdict: Outcome of the run.
        summary: Content of ``summary.json``. None before the run finishes.
        findings: Active findings.
        attempts: Attempts, oldest first.
        curves: Curves of training and validation by logged name.
    """

    label: str
    folder: str
    status: str
    verdict: Verdict
    summary: RunSummary | None
    findings: list[FindingRecord]
    attempts: list[AttemptSummary]
    curves: dict[str, CurveSummary]


class MeanRecord(TypedDict):
    """Mean over seeds with its 95% interval.

    Attributes:
        mean: Mean.
        low: Lower bound. None for fewer than three seeds or if the mean is not finite.
        high: Upper bound, like ``low``.
    """

    mean: float
    low: float | None
    high: float | None


class SeedStatistics(TypedDict):
    """Means of runs that differ only in their seed."""

    count: int
    test: dict[str, MeanRecord]
    validation: dict[str, MeanRecord]


class SeedGroup(SeedStatistics):
    """Runs that differ only in their seed.

    Attributes:
        runs: Labels of the runs.
        settings: Settings that distinguish the group from other runs.
    """

    runs: list[str]
    settings: dict[str, Any]


class RunPair(Comparison):
    """Two runs that were tested on the same samples.

    Attributes:
        runs: Labels of both.
    """

    runs: list[str]


class ComparisonNumbers(TypedDict):
    """The numbers of several runs.

    Attributes:
        last_step: Last known step of all runs.
        settings: Value in each run of the settings that differ and change the result, by dotted key.
        runs: All runs.
        seeds: Groups of runs that differ only in their seed.
        paired: Comparisons of the first pairs of runs with the same test samples, by the headline metric.
        pairs: Number of all such pairs.
    """

    last_step: int
    settings: dict[str, list[Any]]
    runs: list[ComparedRun]
    seeds: list[SeedGroup]
    paired: list[RunPair]
    pairs: int
