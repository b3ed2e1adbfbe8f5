"""Builds the page of a compression from its numbers."""

from __future__ import annotations

from stormproof_train.compression.records import CompressionNumbers
from stormproof_train.compression.report.compression_info import CompressionInfo, read_compression
from stormproof_train.compression.report.tables import (
    artifact_test_table,
    artifacts_table,
    costs_table,
    fine_tuning_table,
    methods_table,
)
from stormproof_train.compression.report.trade_offs import trade_off_charts
from stormproof_train.compression.report.verdict import sentences, tone
from stormproof_train.report.kit.page import Page, Section


def compression_page(numbers: CompressionNumbers) -> Page:
    """Builds the page of a compression.

    Numbers may be None or not finite. Texts are not trusted.
    """
    compression = read_compression(numbers)
    return Page(
        title=numbers["name"],
        tone=tone(compression),
        sentences=sentences(numbers, compression),
        sections=[
            _artifacts_section(compression),
            _test_section(numbers, compression),
            Section("Trade-offs", charts=trade_off_charts(compression)),
            _methods_section(numbers, compression),
            Section("Notes", [str(message) for message in numbers["skipped"]]),
            _measurement_section(numbers),
        ],
    )


def _artifacts_section(compression: CompressionInfo) -> Section:
    if not compression.artifacts:
        return Section("Artifacts", ["No artifact was built."])
    return Section(
        "Artifacts",
        [
            f"{compression.metric.name} and its degradation are measured on validation.",
            "Ranges are 95% intervals. MACs are multiply-accumulates per sample.",
        ],
        tables=[("", artifacts_table(compression))],
        folded=[("Latency, memory and load time", costs_table(compression))],
    )


def _test_section(numbers: CompressionNumbers, compression: CompressionInfo) -> Section:
    table = artifact_test_table(compression)
    if not table.rows:
        return Section("Test split")
    num_samples = numbers["samples"]["test"]
    samples_note = f" It has {num_samples:,} samples." if num_samples else ""
    note = f"Artifacts within the budget were tested after the selection.{samples_note}"
    return Section("Test split", [f"{note} Ranges are 95% intervals."], tables=[("", table)])


def _methods_section(numbers: CompressionNumbers, compression: CompressionInfo) -> Section:
    runs = numbers["fine_tuning"]
    return Section(
        "Methods",
        tables=[
            *([("Artifacts", methods_table(compression))] if compression.artifacts else []),
            *([("Fine-tuning runs", fine_tuning_table(runs))] if runs else []),
        ],
    )


def _measurement_section(numbers: CompressionNumbers) -> Section:
    machine, samples = numbers["machine"], numbers["samples"]
    threads, calibration = machine["threads"], f"{samples['calibration']:,}"
    return Section(
        "Measurements",
        [
            f"{machine['processor']}, {threads} thread{'s' * (threads != 1)}; {machine['int8'].rstrip('.')}.",
            "Latencies of artifact and original were measured in alternation. They differ on other processors.",
            f"{samples['validation']:,} validation samples, and {calibration} training samples to calibrate int8.",
            f"Compressed checkpoint: {numbers['checkpoint']} of the run {numbers['run']}.",
        ],
    )
