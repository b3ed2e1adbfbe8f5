"""The numbers of a compression as the parts of its page read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stormproof_train.compression.report.metric import Metric
from stormproof_train.compression.report.quantities import quotient
from stormproof_train.evaluation.intervals import Interval
from stormproof_train.report.kit.json_numbers import finite

ORIGINAL = "original"


@dataclass(frozen=True)
class Artifact:
    """One artifact, all of whose numbers are finite or None.

    Attributes:
        name: of it.
        method: how it was made.
        quantization: ``none``, ``int8`` or ``weights_int8``.
        validation: the headline metric there.
        lost: by how much that is worse than the original's.
        within: whether that is within the budget.
        test: the headline metric on the test split, or None.
        test_lost: by how much that is worse than the original's, or None.
        mcnemar: samples that the original alone has right, that this alone has, and the p-value; or None.
        calibration_error: of its probabilities, on the test split where that was read, else on validation.
        bytes: of its file.
        parameters: of its network.
        macs: multiply-accumulates of one sample.
        memory: bytes that its process took for it.
        load_seconds: until it could predict.
        latency: by batch size the median and the 95th percentile in seconds.
        in_turn: by batch size the median of the original that was timed in turn with it.
        speedup: by batch size how many times faster than the original, with its 95% interval.
        difference: the largest absolute one to its network in PyTorch.
        beaten_by: the name of one that is nowhere worse and somewhere better.
        remarks: what is to be said against it.
        folder: seen from that of the compression.
    """

    name: str
    method: str
    quantization: str
    validation: Interval | None
    lost: Interval | None
    within: bool
    test: Interval | None
    test_lost: Interval | None
    mcnemar: tuple[int, int, float | None] | None
    calibration_error: float | None
    bytes: float | None
    parameters: float | None
    macs: float | None
    memory: float | None
    load_seconds: float | None
    latency: Mapping[str, tuple[float | None, float | None]]
    in_turn: Mapping[str, float | None]
    speedup: Mapping[str, Interval]
    difference: float | None
    beaten_by: str | None
    remarks: Sequence[str]
    folder: str

    def median(self, batch: str) -> float | None:
        """Seconds of a batch of this size."""
        return self.latency.get(batch, (None, None))[0]


@dataclass(frozen=True)
class Compression:
    """A compression.

    Attributes:
        metric: the headline metric.
        budget: what may be lost, as the user wrote it; empty where nothing limits it.
        allowed: the same in the metric's own unit, or None.
        target: what is wanted: how many times faster (``speedup``), smaller (``size``) or fewer (``macs``).
        minimize: ``latency``, ``size`` or ``macs``.
        artifacts: the original first.
        batches: the batch sizes that were timed, the smallest first.
        best: the recommended artifact, or None.
    """

    metric: Metric
    budget: str
    allowed: float | None
    target: Mapping[str, float]
    minimize: str
    artifacts: Sequence[Artifact]
    batches: Sequence[str]
    best: Artifact | None

    @property
    def original(self) -> Artifact | None:
        """What was compressed, as it is without compression."""
        return next((each for each in self.artifacts if each.name == ORIGINAL), None)

    @property
    def smaller(self) -> list[Artifact]:
        """All but the original."""
        return [each for each in self.artifacts if each.name != ORIGINAL]

    def gain(self, artifact: Artifact, kind: str) -> float | None:
        """How many times faster (``speedup``), smaller (``size``) or cheaper (``macs``, ``parameters``) it is."""
        if kind == "speedup":
            speedup = artifact.speedup.get(self.batches[0]) if self.batches else None
            return None if speedup is None else speedup.value
        name = {"size": "bytes"}.get(kind, kind)
        return quotient(getattr(self.original, name, None), getattr(artifact, name))

    def reaches_target(self, artifact: Artifact) -> bool:
        """Whether it is as fast, small and cheap as was wanted."""
        return all((self.gain(artifact, kind) or 0) >= wanted for kind, wanted in self.target.items())


def read_compression(numbers: Mapping[str, Any]) -> Compression:
    """Reads a compression.

    Args:
        numbers: as :func:`stormproof_train.compression.report.compression_page.compression_page` takes them.
    """
    artifacts = [read_artifact(each) for each in numbers["artifacts"]]
    budget = numbers["budget"] or {"told": "", "allowed": None}
    return Compression(
        metric=Metric(numbers["headline"], numbers["higher_is_better"]),
        budget=str(budget["told"]),
        allowed=finite(budget["allowed"]),
        target={kind: wanted for kind, each in numbers["target"].items() if (wanted := finite(each)) is not None},
        minimize=numbers["minimize"],
        artifacts=artifacts,
        batches=sorted({batch for each in artifacts for batch in [*each.latency, *each.speedup]}, key=int),
        best=next((each for each in artifacts if each.name == numbers["best"]), None),
    )


def read_artifact(told: Mapping[str, Any]) -> Artifact:
    """Reads one of the ``artifacts`` of a compression's numbers."""
    speedups = {str(batch): interval(each) for batch, each in told["speedup"].items()}

    def against_original(key: str) -> Interval | None:
        found = interval(told[key])
        if found is None or told["name"] != ORIGINAL:
            return found
        return Interval(found.value, None, None)  # from itself it cannot differ by chance

    return Artifact(
        name=told["name"],
        method=told["method"],
        quantization=told["quantization"],
        within=told["within"],
        mcnemar=_mcnemar(told["mcnemar"]),
        latency={str(batch): (finite(each["median"]), finite(each["p95"])) for batch, each in told["latency"].items()},
        in_turn={str(batch): finite(each["original"]) for batch, each in told["latency"].items()},
        speedup={batch: each for batch, each in speedups.items() if each is not None},
        beaten_by=told["beaten_by"],
        remarks=told["remarks"],
        folder=told["folder"],
        validation=interval(told["validation"]),
        lost=against_original("lost"),
        test=interval(told["test"]),
        test_lost=against_original("test_lost"),
        calibration_error=finite(told["calibration_error"]),
        bytes=finite(told["bytes"]),
        parameters=finite(told["parameters"]),
        macs=finite(told["macs"]),
        memory=finite(told["memory"]),
        load_seconds=finite(told["load_seconds"]),
        difference=finite(told["difference"]),
    )


def interval(told: Mapping[str, Any] | None) -> Interval | None:
    """A value with both ends of its interval, or with none; None where it is not finite.

    Example:
        >>> interval({"value": 0.5, "low": None, "high": 0.6}), interval({"value": None, "low": None, "high": None})
        (Interval(value=0.5, low=None, high=None), None)
    """
    value = None if told is None else finite(told["value"])
    if told is None or value is None:
        return None
    low, high = finite(told["low"]), finite(told["high"])
    return Interval(value, low, high) if low is not None and high is not None else Interval(value, None, None)


def _mcnemar(told: Mapping[str, Any] | None) -> tuple[int, int, float | None] | None:
    return None if told is None else (told["first_alone"], told["second_alone"], finite(told["p_value"]))
