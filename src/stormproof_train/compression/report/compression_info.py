"""Reads the numbers of a compression for its page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from stormproof_train.compression.records import ArtifactNumbers, CompressionNumbers
from stormproof_train.compression.report.metric import Metric
from stormproof_train.compression.report.quantities import divide_or_none
from stormproof_train.evaluation.intervals import Interval, IntervalRecord
from stormproof_train.evaluation.records import McNemarRecord
from stormproof_train.report.kit.json_numbers import finite_or_none

ORIGINAL = "original"


@dataclass(frozen=True)
class ArtifactInfo:
    """An artifact: the fields of :class:`ArtifactNumbers` that the page shows. All numbers are finite or None.

    Attributes:
        is_within_budget: Whether the degradation is within the budget.
        mcnemar: Number of samples on which only the original is correct, only this artifact is correct, and the
            p-value. None if not tested.
        calibration_error: Expected calibration error, on the test split if it was used, otherwise on validation.
        latency: Median and 95th percentile in seconds by batch size.
        original_latency: Median of the original, timed in alternation, by batch size.
    """

    name: str
    method: str
    quantization: str
    validation: Interval | None
    degradation: Interval | None
    is_within_budget: bool
    test: Interval | None
    test_degradation: Interval | None
    mcnemar: tuple[int, int, float | None] | None
    calibration_error: float | None
    bytes: float | None
    parameters: float | None
    macs: float | None
    memory: float | None
    load_seconds: float | None
    latency: Mapping[str, tuple[float | None, float | None]]
    original_latency: Mapping[str, float | None]
    speedup: Mapping[str, Interval]
    difference: float | None
    dominated_by: str | None
    remarks: Sequence[str]
    folder: str

    def median_latency(self, batch_size: str) -> float | None:
        """Returns the median seconds of a batch of this size."""
        return self.latency.get(batch_size, (None, None))[0]


@dataclass(frozen=True)
class CompressionInfo:
    """A compression: the fields of :class:`CompressionNumbers` that the page shows.

    Attributes:
        metric: Headline metric.
        budget: Budget as the user wrote it. Empty if unlimited.
        allowed: Budget in the unit of the metric. None if unlimited.
        batch_sizes: Timed batch sizes in ascending order.
        best: Recommended artifact, or None.
    """

    metric: Metric
    budget: str
    allowed: float | None
    target: Mapping[str, float]
    minimize: str
    artifacts: Sequence[ArtifactInfo]
    batch_sizes: Sequence[str]
    best: ArtifactInfo | None

    @property
    def original(self) -> ArtifactInfo | None:
        """The original without compression."""
        return next((artifact for artifact in self.artifacts if artifact.name == ORIGINAL), None)

    @property
    def compressed_artifacts(self) -> list[ArtifactInfo]:
        """All artifacts except the original."""
        return [artifact for artifact in self.artifacts if artifact.name != ORIGINAL]

    def gain(self, artifact: ArtifactInfo, quantity: str) -> float | None:
        """Returns the gain in ``speedup``, ``size``, ``macs`` or ``parameters`` over the original."""
        if quantity == "speedup":
            speedup = artifact.speedup.get(self.batch_sizes[0]) if self.batch_sizes else None
            return None if speedup is None else speedup.value
        name = {"size": "bytes"}.get(quantity, quantity)
        return divide_or_none(getattr(self.original, name, None), getattr(artifact, name))

    def reaches_target(self, artifact: ArtifactInfo) -> bool:
        """Returns True if the artifact reaches all target gains."""
        return all((self.gain(artifact, quantity) or 0) >= required for quantity, required in self.target.items())


def read_compression(numbers: CompressionNumbers) -> CompressionInfo:
    """Converts the numbers of a compression."""
    artifacts = [read_artifact(entry) for entry in numbers["artifacts"]]
    budget = numbers["budget"] or {"requested": "", "allowed": None}
    return CompressionInfo(
        metric=Metric(numbers["headline"], numbers["higher_is_better"]),
        budget=str(budget["requested"]),
        allowed=finite_or_none(budget["allowed"]),
        target={
            quantity: required
            for quantity, value in numbers["target"].items()
            if (required := finite_or_none(value)) is not None
        },
        minimize=numbers["minimize"],
        artifacts=artifacts,
        batch_sizes=sorted(
            {batch_size for artifact in artifacts for batch_size in [*artifact.latency, *artifact.speedup]}, key=int
        ),
        best=next((artifact for artifact in artifacts if artifact.name == numbers["best"]), None),
    )


def read_artifact(entry: ArtifactNumbers) -> ArtifactInfo:
    """Converts an entry of ``artifacts``."""
    speedups = {str(batch_size): read_interval(interval) for batch_size, interval in entry["speedup"].items()}

    def read_degradation(key: Literal["degradation", "test_degradation"]) -> Interval | None:
        degradation = read_interval(entry[key])
        if degradation is None or entry["name"] != ORIGINAL:
            return degradation
        return Interval(degradation.value, None, None)  # the original does not differ from itself

    return ArtifactInfo(
        name=entry["name"],
        method=entry["method"],
        quantization=entry["quantization"],
        is_within_budget=entry["within"],
        mcnemar=_read_mcnemar(entry["mcnemar"]),
        latency={
            str(batch_size): (finite_or_none(latencies["median"]), finite_or_none(latencies["p95"]))
            for batch_size, latencies in entry["latency"].items()
        },
        original_latency={
            str(batch_size): finite_or_none(latencies["original"]) for batch_size, latencies in entry["latency"].items()
        },
        speedup={batch_size: speedup for batch_size, speedup in speedups.items() if speedup is not None},
        dominated_by=entry["dominated_by"],
        remarks=entry["remarks"],
        folder=entry["folder"],
        validation=read_interval(entry["validation"]),
        degradation=read_degradation("degradation"),
        test=read_interval(entry["test"]),
        test_degradation=read_degradation("test_degradation"),
        calibration_error=finite_or_none(entry["calibration_error"]),
        bytes=finite_or_none(entry["bytes"]),
        parameters=finite_or_none(entry["parameters"]),
        macs=finite_or_none(entry["macs"]),
        memory=finite_or_none(entry["memory"]),
        load_seconds=finite_or_none(entry["load_seconds"]),
        difference=finite_or_none(entry["difference"]),
    )


def read_interval(entry: IntervalRecord | None) -> Interval | None:
    """Converts a value with its interval. Returns None if the value is not finite.

    Example:
        >>> read_interval({"value": 0.5, "low": None, "high": 0.6}), read_interval({"value": None, "low": None})
        (Interval(value=0.5, low=None, high=None), None)
    """
    value = None if entry is None else finite_or_none(entry["value"])
    if entry is None or value is None:
        return None
    low, high = finite_or_none(entry["low"]), finite_or_none(entry["high"])
    return Interval(value, low, high) if low is not None and high is not None else Interval(value, None, None)


def _read_mcnemar(entry: McNemarRecord | None) -> tuple[int, int, float | None] | None:
    if entry is None:
        return None
    return entry["only_first_correct"], entry["only_second_correct"], finite_or_none(entry["p_value"])
