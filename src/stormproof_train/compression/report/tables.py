"""The tables of a compression."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stormproof_train.compression.report.artifacts import ORIGINAL, Artifact, Compression
from stormproof_train.compression.report.marks import standing
from stormproof_train.compression.report.quantities import milliseconds, prefixed, ratio
from stormproof_train.console import shown
from stormproof_train.report.kit.chart import Table
from stormproof_train.report.kit.duration import duration
from stormproof_train.report.kit.json_numbers import finite
from stormproof_train.report.tables import compact


def artifacts_table(compression: Compression) -> Table:
    """All artifacts with what they lost on validation, and what they gained."""
    metric, batches = compression.metric, compression.batches
    head = (
        "artifact", "", metric.lost_title, metric.name, *(f"faster, batch {batch}" for batch in batches),
        *(f"ms, batch {batch}" for batch in batches), "size", "MACs",
    )  # fmt: skip
    rows = [
        (
            each.name, standing(each, compression), _together(metric.lost_cell(each.lost)),
            "" if each.validation is None else shown(each.validation.value),
            *(_speedup(each, batch) for batch in batches), *(milliseconds(each.median(batch)) for batch in batches),
            _together(prefixed(each.bytes, "B")), _together(prefixed(each.macs)),
        )
        for each in compression.artifacts
    ]  # fmt: skip
    return compact(Table(head, rows))


def tested_table(compression: Compression) -> Table:
    """Those artifacts for which the test split was read, beside the original."""
    metric = compression.metric
    head = (
        "artifact", metric.lost_title, metric.name, "the original alone is right on", "this alone", "p (McNemar)",
        "calibration error",
    )  # fmt: skip
    rows = [
        (
            each.name,
            *map(_together, (metric.lost_cell(each.test_lost), metric.cell(each.test))),
            *_mcnemar(each),
            "" if each.calibration_error is None else shown(each.calibration_error),
        )
        for each in compression.artifacts
        if each.test is not None
    ]
    return compact(Table(head, rows))


def costs_table(compression: Compression) -> Table:
    """The metric on validation, latencies with their 95th percentiles, parameters, memory, the time to load."""
    metric = compression.metric
    head = [f"ms, batch {batch}: {of}" for batch in compression.batches for of in ("median", "95% are below")]
    rows = [
        (
            each.name, _together(metric.cell(each.validation)),
            *(milliseconds(time) for batch in compression.batches for time in each.latency.get(batch, (None, None))),
            _together(prefixed(each.parameters)), _together(prefixed(each.memory, "B")),
            milliseconds(each.load_seconds),
        )
        for each in compression.artifacts
    ]  # fmt: skip
    return compact(
        Table(("artifact", f"{metric.name} on validation", *head, "parameters", "memory", "ms to load"), rows)
    )


def methods_table(compression: Compression) -> Table:
    """How each artifact was made, how close it is to its network, and where it lies."""
    head = ("artifact", "how it was made", "difference to PyTorch", "folder")
    rows = [
        (
            each.name, each.method, "" if each.difference is None else f"{each.difference:.2g}",
            each.folder,
        )
        for each in compression.artifacts
    ]  # fmt: skip
    return compact(Table(head, rows))


def fine_tuning_table(runs: Sequence[Mapping[str, Any]]) -> Table:
    """The fine-tuning runs; ``fine_tuning`` of the numbers of a compression."""
    rows = [
        (
            str(each["name"]), ratio(finite(each["times"])), _steps(each["steps"]), _seconds(each["seconds"]),
            str(each["became"] or ""), str(each["run"] or ""),
        )
        for each in runs
    ]  # fmt: skip
    return compact(Table(("network", "times fewer MACs, at least", "steps", "time", "what became of it", "run"), rows))


def _speedup(artifact: Artifact, batch: str) -> str:
    speedup = artifact.speedup.get(batch)
    if speedup is None:
        return ""
    has_ends = speedup.low is not None and artifact.name != ORIGINAL
    ends = f" ({ratio(speedup.low)} to {ratio(speedup.high)})" if has_ends else ""
    return _together(f"{ratio(speedup.value)}{ends}")


def _together(told: str) -> str:
    """What stays on one line."""
    return told.replace(" ", "\N{NO-BREAK SPACE}")


def _mcnemar(artifact: Artifact) -> tuple[str, str, str]:
    if artifact.mcnemar is None:
        return "", "", ""
    first, second, p_value = artifact.mcnemar
    return f"{first:,}", f"{second:,}", "" if p_value is None else f"{p_value:.2g}"


def _steps(steps: Any) -> str:
    known = finite(steps)
    return "" if known is None else f"{known:,.0f}"


def _seconds(seconds: Any) -> str:
    known = finite(seconds)
    return "" if known is None else duration(known)
