"""What a compression says to a person when it has ended."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stormproof_train.compression.report.artifacts import Artifact, Compression, read_compression
from stormproof_train.compression.report.marks import look_of
from stormproof_train.compression.report.quantities import milliseconds, prefixed, ratio
from stormproof_train.compression.report.verdict import sentences
from stormproof_train.console import print_table, say, shown

_MARKED = {"best", "beyond", "beaten"}
"""The looks whose names a line has room for."""
_MEANINGS = {
    "beyond": "the worse end of what it lost is beyond the budget",
    "beaten": "on validation another is nowhere worse and somewhere better",
}


def tell(numbers: Mapping[str, Any]) -> None:
    """Prints what a compression has come to: the table, and the sentences that head its page.

    Args:
        numbers: as :func:`stormproof_train.compression.report.compression_page.compression_page` takes them.
    """
    compression = read_compression(numbers)
    metric = compression.metric
    is_tested = any(each.test is not None for each in compression.smaller)
    head = (
        "artifact", f"{'test' if is_tested else 'validation'}\n{metric.name}",
        f"{metric.lost_title} \non validation, 95%", "size", "MACs",
        *(f"ms for\n{batch}" for batch in compression.batches),
        *(f"faster\nfor {batch}" for batch in compression.batches[:1]), "",
    )  # fmt: skip
    rows = [_row(each, compression, is_tested=is_tested) for each in compression.artifacts]
    print_table(f"{numbers['name']}: what came of compressing {numbers['run']}", head, rows)
    marks = {row[-1] for row in rows}
    for mark, meaning in _MEANINGS.items():
        if mark in marks:
            say(f"{mark}: {meaning}")
    for sentence in sentences(numbers, compression):
        say(sentence)
    for sentence in numbers["skipped"]:
        say(f"not done: {sentence}")


def _row(artifact: Artifact, compression: Compression, *, is_tested: bool) -> list[str]:
    value, look = artifact.test if is_tested else artifact.validation, look_of(artifact, compression)
    return [
        artifact.name, "" if value is None else shown(value.value), compression.metric.lost_cell(artifact.lost),
        prefixed(artifact.bytes, "B"), prefixed(artifact.macs),
        *(milliseconds(artifact.median(batch)) for batch in compression.batches),
        ratio(compression.gain(artifact, "speedup")), look if look in _MARKED else "",
    ]  # fmt: skip
