"""Records that a run folder contains as JSON."""

from __future__ import annotations

from typing import NotRequired, TypedDict

from stormproof_train.config.identity import SettingRecord


class AttemptRecord(TypedDict):
    """One attempt in ``run.json``.

    Attributes:
        number: Counts from 1.
        host: Host name of rank 0.
        pid: Process ID of rank 0.
        ranks: World size. None before training starts.
        accumulated: Batches per optimizer step on each rank. None before training starts.
        jobs: Job IDs from the environment of the launcher.
        start: Time in ISO 8601.
        end: Time in ISO 8601. None until the attempt ends.
        first_step: Step at which training started or resumed. None before training starts.
        last_step: Last known step. None if unknown.
        reason: Why the attempt ended early. None if it finished.
        code: Exit code. None if unknown.
        skipped: Reasons why newer checkpoints were skipped, by name.
        preempted: Whether the attempt was preempted.
    """

    number: int
    host: str
    pid: int
    ranks: int | None
    accumulated: int | None
    jobs: dict[str, str]
    start: str
    end: str | None
    first_step: int | None
    last_step: int | None
    reason: str | None
    code: int | None
    skipped: NotRequired[dict[str, str]]
    preempted: NotRequired[bool]


class RunRecord(TypedDict):
    """Content of ``run.json``.

    Attributes:
        name: Name of the run.
        id: Random ID: 8 hex digits.
        attempts: Attempts, oldest first.
        identity: Hash of the settings that change the result.
        status: ``running``, ``finished``, ``failed``, ``preempted``, or ``interrupted``
            (stopped without saving).
        changed: Settings that differ from the defaults. Missing until the run has finished, and without a report.
    """

    name: str
    id: str
    attempts: list[AttemptRecord]
    identity: str
    status: str
    changed: NotRequired[list[SettingRecord]]


class EvaluationSummary(TypedDict):
    """Part of ``summary.json`` about the test split. All fields are empty if the split was not evaluated.

    Attributes:
        intervals: Ends of the 95% interval, by metric.
        baselines: Metrics on the test split, by baseline. Empty unless the data is a table.
        conclusions: Sentences that compare the network with the baselines.
    """

    intervals: dict[str, list[float]]
    baselines: dict[str, dict[str, float]]
    conclusions: list[str]


class RunSummary(EvaluationSummary):
    """Content of ``summary.json``.

    Attributes:
        name: Name of the run.
        test: Values by metric. Empty if the test split was not read.
        validation: Values by metric.
        headline: Name of the headline metric.
        higher_is_better: Whether a higher headline metric is better.
        weights: Path of the evaluated checkpoint, relative to the run folder. None for the last weights.
        parameters: Number of parameters of the network.
        steps: Optimizer steps.
        epochs: Epochs.
        attempts: Number of attempts. Present on rank 0 only.
        seconds: Total duration of all attempts.
    """

    name: str
    test: dict[str, float]
    validation: dict[str, float]
    headline: str
    higher_is_better: bool
    weights: str | None
    parameters: int
    steps: int
    epochs: int
    attempts: NotRequired[int]
    seconds: float
