"""Builds the tables of a compression."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from stormproof_train.compression.records import FineTuningRecord
from stormproof_train.compression.report.compression_info import ORIGINAL, ArtifactInfo, CompressionInfo
from stormproof_train.compression.report.marks import describe_status
from stormproof_train.compression.report.quantities import format_count, format_milliseconds, format_ratio
from stormproof_train.console import format_value
from stormproof_train.report.kit.chart import Table
from stormproof_train.report.kit.duration import format_duration
from stormproof_train.report.kit.json_numbers import finite_or_none
from stormproof_train.report.tables import drop_empty


def artifacts_table(compression: CompressionInfo) -> Table:
    """Returns all artifacts with their degradation on validation and their gains."""
    metric, batch_sizes = compression.metric, compression.batch_sizes
    head = (
        "artifact", "", metric.degradation_title, metric.name,
        *(f"faster, batch {batch_size}" for batch_size in batch_sizes),
        *(f"ms, batch {batch_size}" for batch_size in batch_sizes), "size", "MACs",
    )  # fmt: skip
    rows = [
        (
            artifact.name, describe_status(artifact, compression),
            _join_with_no_break_spaces(metric.format_degradation_interval(artifact.degradation)),
            "" if artifact.validation is None else format_value(artifact.validation.value),
            *(_speedup_cell(artifact, batch_size) for batch_size in batch_sizes),
            *(format_milliseconds(artifact.median_latency(batch_size)) for batch_size in batch_sizes),
            _join_with_no_break_spaces(format_count(artifact.bytes, "B")),
            _join_with_no_break_spaces(format_count(artifact.macs)),
        )
        for artifact in compression.artifacts
    ]  # fmt: skip
    return drop_empty(Table(head, rows))


def artifact_test_table(compression: CompressionInfo) -> Table:
    """Returns the tested artifacts with their degradation compared with the original."""
    metric = compression.metric
    head = (
        "artifact", metric.degradation_title, metric.name, "only the original correct", "only this artifact correct",
        "p (McNemar)", "calibration error",
    )  # fmt: skip
    rows = [
        (
            artifact.name,
            *map(
                _join_with_no_break_spaces,
                (metric.format_degradation_interval(artifact.test_degradation), metric.format_interval(artifact.test)),
            ),
            *_mcnemar_cells(artifact),
            "" if artifact.calibration_error is None else format_value(artifact.calibration_error),
        )
        for artifact in compression.artifacts
        if artifact.test is not None
    ]
    return drop_empty(Table(head, rows))


def costs_table(compression: CompressionInfo) -> Table:
    """Returns the metric on validation, median and 95th percentile of latencies, parameters, memory and load time."""
    metric = compression.metric
    head = [
        f"ms, batch {batch_size}: {statistic}"
        for batch_size in compression.batch_sizes
        for statistic in ("median", "95th percentile")
    ]
    rows = [
        (
            artifact.name, _join_with_no_break_spaces(metric.format_interval(artifact.validation)),
            *(format_milliseconds(seconds) for batch_size in compression.batch_sizes
              for seconds in artifact.latency.get(batch_size, (None, None))),
            _join_with_no_break_spaces(format_count(artifact.parameters)),
            _join_with_no_break_spaces(format_count(artifact.memory, "B")),
            format_milliseconds(artifact.load_seconds),
        )
        for artifact in compression.artifacts
    ]  # fmt: skip
    return drop_empty(
        Table(("artifact", f"{metric.name} on validation", *head, "parameters", "memory", "ms to load"), rows)
    )


def methods_table(compression: CompressionInfo) -> Table:
    """Returns the method, the difference from PyTorch and the folder of each artifact."""
    head = ("artifact", "method", "difference from PyTorch", "folder")
    rows = [
        (
            artifact.name, artifact.method, "" if artifact.difference is None else f"{artifact.difference:.2g}",
            artifact.folder,
        )
        for artifact in compression.artifacts
    ]  # fmt: skip
    return drop_empty(Table(head, rows))


def fine_tuning_table(runs: Sequence[FineTuningRecord]) -> Table:
    """Returns the fine-tuning runs."""
    rows = [
        (
            str(run["name"]), format_ratio(finite_or_none(run["times"])), _format_steps(run["steps"]),
            _format_seconds(run["seconds"]),
            str(run["outcome"] or ""), str(run["run"] or ""),
        )
        for run in runs
    ]  # fmt: skip
    return drop_empty(Table(("network", "MACs reduction, at least", "steps", "time", "outcome", "run"), rows))


def _speedup_cell(artifact: ArtifactInfo, batch_size: str) -> str:
    speedup = artifact.speedup.get(batch_size)
    if speedup is None:
        return ""
    has_interval = speedup.low is not None and artifact.name != ORIGINAL
    interval_text = f" ({format_ratio(speedup.low)} to {format_ratio(speedup.high)})" if has_interval else ""
    return _join_with_no_break_spaces(f"{format_ratio(speedup.value)}{interval_text}")


def _join_with_no_break_spaces(text: str) -> str:
    """Replaces spaces by non-breaking spaces."""
    return text.replace(" ", "\N{NO-BREAK SPACE}")


def _mcnemar_cells(artifact: ArtifactInfo) -> tuple[str, str, str]:
    if artifact.mcnemar is None:
        return "", "", ""
    original_only, artifact_only, p_value = artifact.mcnemar
    return f"{original_only:,}", f"{artifact_only:,}", "" if p_value is None else f"{p_value:.2g}"


def _format_steps(steps: Any) -> str:
    value = finite_or_none(steps)
    return "" if value is None else f"{value:,.0f}"


def _format_seconds(seconds: Any) -> str:
    value = finite_or_none(seconds)
    return "" if value is None else format_duration(value)
