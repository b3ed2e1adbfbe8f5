"""Defines the content of ``answer.json``."""

from __future__ import annotations

from typing import TypedDict

from stormproof_train.compression.settings import TargetName
from stormproof_train.evaluation.intervals import IntervalRecord
from stormproof_train.evaluation.records import McNemarRecord


class BudgetRecord(TypedDict):
    """A :class:`stormproof_train.compression.budget.Budget`."""

    requested: str
    allowed: float


class Machine(TypedDict):
    """The machine of the measurements.

    Attributes:
        processor: Name of the processor.
        threads: Number of threads.
        int8: Support of the processor for int8, as a sentence.
    """

    processor: str
    threads: int
    int8: str


class Provenance(TypedDict):
    """Components and package versions that produced the network.

    Attributes:
        network: Import paths by config group.
        versions: Versions by package.
    """

    network: dict[str, str]
    versions: dict[str, str]


class SampleCounts(TypedDict):
    """Number of samples of each split. ``test`` has no number (None) if the split was not used."""

    validation: int
    test: int | None
    calibration: int


class ClassDegradation(TypedDict):
    """Decrease in the recall of a class on validation, compared with the original."""

    name: str
    degradation: float


class ArtifactNumbers(TypedDict):
    """An artifact.

    The fields of :class:`stormproof_train.compression.artifact.Artifact`, with ``value`` as ``validation``, and:

    Attributes:
        within: Whether the degradation is within the budget.
        test: Headline metric on the test split. None if it was not used.
        test_degradation: Degradation on the test split. None if it was not used.
        mcnemar: The original against the artifact on the test split. None if it was not used.
        degradation_by_class: Decrease in the recall of each class on validation. Empty for regression.
        dominated_by: Name of an artifact that dominates this one, or None.
        remarks: Drawbacks, in words.
        folder: Path, relative to the folder of the compression.
    """

    name: str
    network: str
    quantization: str
    method: str
    parameters: int
    macs: int
    bytes: int
    validation: IntervalRecord
    degradation: IntervalRecord
    calibration_error: float | None
    difference: float
    latency: dict[str, dict[str, float]]
    speedup: dict[str, IntervalRecord]
    memory: int
    load_seconds: float
    digests: dict[str, str]
    within: bool
    test: IntervalRecord | None
    test_degradation: IntervalRecord | None
    mcnemar: McNemarRecord | None
    degradation_by_class: list[ClassDegradation]
    dominated_by: str | None
    remarks: list[str]
    folder: str


class FineTuningRecord(TypedDict):
    """A fine-tuning run.

    Attributes:
        name: Name of the network and of the run.
        times: Minimum reduction of the multiply-accumulates.
        steps: Optimizer steps.
        outcome: Problem, if any. Empty on success.
        run: Path of the run folder.
        seconds: Duration. None if the run has not finished.
    """

    name: str
    times: float
    steps: int
    outcome: str
    run: str
    seconds: float | None


class CompressionNumbers(TypedDict):
    """The numbers of a compression. JSON has ``nan``, ``inf`` and ``-inf`` as strings.

    Attributes:
        name: Name of the compression.
        run: Path of the compressed run.
        checkpoint: Path of the compressed checkpoint.
        task: Task of the data.
        headline: Name of the headline metric.
        higher_is_better: Whether a higher headline metric is better.
        budget: None if unlimited.
        target: Minimum gain by ``speedup``, ``size`` and ``macs``.
        minimize: ``latency``, ``size`` or ``macs``.
        machine: Machine of the measurements.
        made_with: Components and package versions that produced the network.
        samples: Number of samples of each split.
        artifacts: Artifacts, the original first.
        best: Name of the recommended artifact, or None.
        why_none: Why no artifact is recommended. None if one is.
        skipped: Skipped methods and subsampled splits, in sentences.
        fine_tuning: Fine-tuning runs.
    """

    name: str
    run: str
    checkpoint: str
    task: str
    headline: str
    higher_is_better: bool
    budget: BudgetRecord | None
    target: dict[TargetName, float]
    minimize: str
    machine: Machine
    made_with: Provenance
    samples: SampleCounts
    artifacts: list[ArtifactNumbers]
    best: str | None
    why_none: str | None
    skipped: list[str]
    fine_tuning: list[FineTuningRecord]
