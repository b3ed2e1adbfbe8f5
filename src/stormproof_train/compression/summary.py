"""Prints the summary of a compression."""

from __future__ import annotations

from stormproof_train.compression.records import CompressionNumbers
from stormproof_train.compression.report.compression_info import ArtifactInfo, CompressionInfo, read_compression
from stormproof_train.compression.report.marks import mark_of
from stormproof_train.compression.report.quantities import format_count, format_milliseconds, format_ratio
from stormproof_train.compression.report.verdict import sentences
from stormproof_train.console import format_value, print_line, print_table

_SHOWN_MARKS = {"best", "over budget", "dominated"}
"""Marks that are printed in the table."""
_MEANINGS = {
    "over budget": "the upper end of the interval of its degradation exceeds the budget",
    "dominated": "another artifact is nowhere worse and somewhere better on validation",
}


def print_summary(numbers: CompressionNumbers) -> None:
    """Prints the table of artifacts and the sentences at the top of the report."""
    compression = read_compression(numbers)
    metric = compression.metric
    is_tested = any(artifact.test is not None for artifact in compression.compressed_artifacts)
    head = (
        "artifact", f"{'test' if is_tested else 'validation'}\n{metric.name}",
        f"{metric.degradation_title} \non validation, 95%", "size", "MACs",
        *(f"ms for\n{batch_size}" for batch_size in compression.batch_sizes),
        *(f"faster\nfor {batch_size}" for batch_size in compression.batch_sizes[:1]), "",
    )  # fmt: skip
    rows = [_row(artifact, compression, is_tested=is_tested) for artifact in compression.artifacts]
    print_table(f"{numbers['name']}: artifacts of {numbers['run']}", head, rows)
    marks = {row[-1] for row in rows}
    for mark, meaning in _MEANINGS.items():
        if mark in marks:
            print_line(f"{mark}: {meaning}")
    for sentence in sentences(numbers, compression):
        print_line(sentence)
    for sentence in numbers["skipped"]:
        print_line(f"note: {sentence}")


def _row(artifact: ArtifactInfo, compression: CompressionInfo, *, is_tested: bool) -> list[str]:
    value, mark = artifact.test if is_tested else artifact.validation, mark_of(artifact, compression)
    return [
        artifact.name, "" if value is None else format_value(value.value),
        compression.metric.format_degradation_interval(artifact.degradation),
        format_count(artifact.bytes, "B"), format_count(artifact.macs),
        *(format_milliseconds(artifact.median_latency(batch_size)) for batch_size in compression.batch_sizes),
        format_ratio(compression.gain(artifact, "speedup")), mark if mark in _SHOWN_MARKS else "",
    ]  # fmt: skip
