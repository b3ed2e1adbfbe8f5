"""Defines the content of ``answer.json``."""

from __future__ import annotations

from typing import Any, NotRequired, TypedDict

from stormproof_train.evaluation.intervals import IntervalRecord


class ObjectiveRecord(TypedDict):
    """An objective."""

    name: str
    higher_is_better: bool


class ParameterRecord(TypedDict):
    """A parameter of the search space.

    Attributes:
        key: Key of the setting.
        kind: ``choice``, ``float`` or ``int``.
        log: Whether the parameter is searched on a logarithmic scale.
        choices: Options of a choice. None for a number.
        low: Lower bound. None for a choice.
        high: Upper bound. None for a choice.
        step: Step of a number. None if it is continuous.
        only_with: The parameter exists only with these choices, by key.
    """

    key: str
    kind: str
    log: bool
    choices: list[Any] | None
    low: float | None
    high: float | None
    step: NotRequired[float | None]
    only_with: dict[str, list[str]]


class ReportedTrial(TypedDict):
    """A trial.

    Attributes:
        number: Counts from 0.
        state: ``complete``, ``pruned``, ``failed``, ``running`` or ``paused``.
        params: Values by key.
        values: One value per objective. None before the trial completes.
        feasible: Whether the trial satisfies all constraints.
        curve: Fraction of the length, step and first objective of each validation.
        steps: Steps so far.
        seconds: Duration so far.
        start: Time in ISO 8601. None if the trial has not started.
        end: When the trial ended or was last paused, in ISO 8601. None otherwise.
        reason: Why it was paused, pruned or failed.
        run: Path of its folder, relative to the folder of the search.
    """

    number: int
    state: str
    params: dict[str, Any]
    values: list[float] | None
    feasible: bool
    curve: list[list[Any]]
    steps: int
    seconds: float
    start: str | None
    end: str | None
    reason: str | None
    run: str


class RandomSearchRecord(TypedDict):
    """Expected result of random search.

    Attributes:
        steps: Steps of all trials.
        runs: Number of complete runs that fit into these steps.
        expected: Expected best value.
        pool: Number of random trials that the estimate uses.
        stopped_early: Number of trials in the pool that were stopped early.
    """

    steps: int
    runs: float
    expected: float
    pool: int
    stopped_early: int


class FailedRun(TypedDict):
    """A run on a fresh seed that failed."""

    run: str
    reason: str


class PairedTest(TypedDict):
    """Mean difference of pairs with its 95% interval and p-value.

    Attributes:
        difference: None if there are no pairs.
        low: None for fewer than two pairs, or if all differences are equal.
        high: Like ``low``.
        p_value: Like ``low``.
    """

    difference: float | None
    low: float | None
    high: float | None
    p_value: float | None


class WinnerComparison(PairedTest):
    """The winner minus the default on fresh seeds.

    Attributes:
        metric: Name of the objective.
        higher_is_better: Whether a higher value is better.
        seeds: Seeds on which both have finished.
        winner: Value of the winner for each seed.
        default: Value of the default for each seed.
        failed: Runs that failed.
        samples_known: Whether the test accounts for samples that the seeds share.
    """

    metric: str
    higher_is_better: bool
    seeds: list[int]
    winner: list[float]
    default: list[float]
    failed: list[FailedRun]
    samples_known: bool


class FinalOverrides(TypedDict):
    """Overrides of the winner and of the default."""

    winner: list[str]
    default: list[str]


class Totals(TypedDict):
    """Total cost of all trials."""

    steps: int
    seconds: float
    gpu_hours: float


class SearchNumbers(TypedDict):
    """The numbers of a search, finished or not. JSON has ``nan``, ``inf`` and ``-inf`` as strings.

    Attributes:
        name: Name of the search.
        finished: Whether all trials and final runs have ended.
        objectives: Objectives.
        constraints: Constraints as the user typed them.
        sampler: Name of the sampler.
        pruner: Name of the pruner.
        rungs: Fractions of the length of a run.
        space: Search space.
        trials: Trials by number.
        best: Number of the winner. None without a winner.
        front: Numbers of the trials on the Pareto front.
        importances: Shares by key, for each objective.
        random: Estimate for random search. None if not available.
        final: Winner and default on fresh seeds. None without fresh seeds.
        test: Test results of the winner by metric. None before the test.
        tested: Path of the tested run, or the reason for not testing.
        also_tested: Numbers of the trials that were tested earlier.
        overrides: Overrides of the winner and of the default.
        totals: Total cost of all trials.
    """

    name: str
    finished: bool
    objectives: list[ObjectiveRecord]
    constraints: list[str]
    sampler: str
    pruner: str
    rungs: list[float]
    space: list[ParameterRecord]
    trials: list[ReportedTrial]
    best: int | None
    front: list[int]
    importances: list[dict[str, float]]
    random: RandomSearchRecord | None
    final: WinnerComparison | None
    test: dict[str, IntervalRecord] | None
    tested: str | None
    also_tested: list[int]
    overrides: FinalOverrides
    totals: Totals
