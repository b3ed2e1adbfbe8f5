"""The numbers of a compression as the parts of its page read them."""

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
    """One artifact, all of whose numbers are finite or None.

    Attributes:
        name: of it.
        method: how it was made.
        quantization: ``none``, ``int8`` or ``weights_int8``.
        validation: the headline metric there.
        degradation: by how much that is worse than the original's.
        is_within_budget: whether that is within the budget.
        test: the headline metric on the test split, or None.
        test_degradation: by how much that is worse than the original's, or None.
        mcnemar: samples that the original alone has right, that this alone has, and the p-value; or None.
        calibration_error: of its probabilities, on the test split where that was read, else on validation.
        bytes: of its file.
        parameters: of its network.
        macs: multiply-accumulates of one sample.
        memory: bytes that its process took for it.
        load_seconds: until it could predict.
        latency: by batch size the median and the 95th percentile in seconds.
        original_latency: by batch size the median of the original that was timed in turn with it.
        speedup: by batch size how many times faster than the original, with its 95% interval.
        difference: the largest absolute one to its network in PyTorch.
        dominated_by: the name of one that is nowhere worse and somewhere better.
        remarks: what is to be said against it.
        folder: seen from that of the compression.
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
        """Seconds of a batch of this size."""
        return self.latency.get(batch_size, (None, None))[0]


@dataclass(frozen=True)
class CompressionInfo:
    """A compression.

    Attributes:
        metric: the headline metric.
        budget: what may be lost, as the user wrote it; empty where nothing limits it.
        allowed: the same in the metric's own unit, or None.
        target: what is wanted: how many times faster (``speedup``), smaller (``size``) or fewer (``macs``).
        minimize: ``latency``, ``size`` or ``macs``.
        artifacts: the original first.
        batch_sizes: the batch sizes that were timed, the smallest first.
        best: the recommended artifact, or None.
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
        """What was compressed, as it is without compression."""
        return next((artifact for artifact in self.artifacts if artifact.name == ORIGINAL), None)

    @property
    def compressed_artifacts(self) -> list[ArtifactInfo]:
        """All but the original."""
        return [artifact for artifact in self.artifacts if artifact.name != ORIGINAL]

    def gain(self, artifact: ArtifactInfo, quantity: str) -> float | None:
        """How many times faster (``speedup``), smaller (``size``) or cheaper (``macs``, ``parameters``) it is."""
        if quantity == "speedup":
            speedup = artifact.speedup.get(self.batch_sizes[0]) if self.batch_sizes else None
            return None if speedup is None else speedup.value
        name = {"size": "bytes"}.get(quantity, quantity)
        return divide_or_none(getattr(self.original, name, None), getattr(artifact, name))

    def reaches_target(self, artifact: ArtifactInfo) -> bool:
        """Whether it is as fast, small and cheap as was wanted."""
        return all((self.gain(artifact, quantity) or 0) >= required for quantity, required in self.target.items())


def read_compression(numbers: CompressionNumbers) -> CompressionInfo:
    """Reads a compression.

    Args:
        numbers: Content of ``answer.json``.
    """
    artifacts = [read_artifact(entry) for entry in numbers["artifacts"]]
    budget = numbers["budget"] or {"told": "", "allowed": None}
    return CompressionInfo(
        metric=Metric(numbers["headline"], numbers["higher_is_better"]),
        budget=str(budget["told"]),
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
    """Reads one of the ``artifacts`` of a compression's numbers."""
    speedups = {str(batch_size): read_interval(interval) for batch_size, interval in entry["speedup"].items()}

    def read_degradation(key: Literal["lost", "test_lost"]) -> Interval | None:
        degradation = read_interval(entry[key])
        if degradation is None or entry["name"] != ORIGINAL:
            return degradation
        return Interval(degradation.value, None, None)  # from itself it cannot differ by chance

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
        dominated_by=entry["beaten_by"],
        remarks=entry["remarks"],
        folder=entry["folder"],
        validation=read_interval(entry["validation"]),
        degradation=read_degradation("lost"),
        test=read_interval(entry["test"]),
        test_degradation=read_degradation("test_lost"),
        calibration_error=finite_or_none(entry["calibration_error"]),
        bytes=finite_or_none(entry["bytes"]),
        parameters=finite_or_none(entry["parameters"]),
        macs=finite_or_none(entry["macs"]),
        memory=finite_or_none(entry["memory"]),
        load_seconds=finite_or_none(entry["load_seconds"]),
        difference=finite_or_none(entry["difference"]),
    )


def read_interval(entry: IntervalRecord | None) -> Interval | None:
    """A value with both ends of its interval, or with none; None where it is not finite.

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
    return None if entry is None else (entry["first_alone"], entry["second_alone"], finite_or_none(entry["p_value"]))
