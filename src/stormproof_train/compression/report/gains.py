"""Describes the gains of an artifact over the original in sentences."""

from __future__ import annotations

from stormproof_train.compression.report.compression_info import ArtifactInfo, CompressionInfo
from stormproof_train.compression.report.quantities import format_count, format_milliseconds, format_ratio

_GAIN_PHRASES = {"speedup": "times faster", "size": "times smaller on disk", "macs": "times fewer multiply-accumulates"}
_EQUAL_RATIO = 1.005
"""Maximum ratio of two counts that are shown as equal."""


def describe_target(compression: CompressionInfo) -> str:
    """Describes the target."""
    return " and ".join(
        f"{format_ratio(required)} {_GAIN_PHRASES[quantity]}" for quantity, required in compression.target.items()
    )


def is_significantly_faster(compression: CompressionInfo, artifact: ArtifactInfo) -> bool:
    """Returns True if it is significantly faster than the original for the smallest batch."""
    speedup = artifact.speedup.get(compression.batch_sizes[0]) if compression.batch_sizes else None
    return speedup is not None and (speedup.value if speedup.low is None else speedup.low) > 1


def describe_gains(compression: CompressionInfo, artifact: ArtifactInfo) -> list[str]:
    """Describes its gains in speed, size and multiply-accumulates, and the targets that it misses."""
    return [
        *([speeds] if (speeds := _describe_speedups(compression, artifact)) else []),
        *([sizes] if (sizes := _describe_sizes(compression, artifact)) else []),
        *_missed_targets(compression, artifact),
    ]


def _describe_speedups(compression: CompressionInfo, artifact: ArtifactInfo) -> str:
    phrases = [
        phrases for batch_size in compression.batch_sizes if (phrases := _describe_speedup(artifact, batch_size))
    ]
    return f"{'; '.join(phrases)}." if phrases else ""


def _describe_speedup(artifact: ArtifactInfo, batch_size: str) -> str:
    speedup = artifact.speedup.get(batch_size)
    if speedup is None:
        return ""
    original_latency, artifact_latency = artifact.original_latency.get(batch_size), artifact.median_latency(batch_size)
    latency_text = (
        ""
        if None in (original_latency, artifact_latency)
        else f"{format_milliseconds(artifact_latency)} ms, the original {format_milliseconds(original_latency)} ms"
    )
    low, high = speedup.low, speedup.high
    interval_text = "" if low is None or high is None else f"95% interval {format_ratio(low)} to {format_ratio(high)}"
    details = "; ".join(filter(None, (interval_text, latency_text)))
    suffix = f" ({details})" if details else ""
    prefix = "For a single sample" if batch_size == "1" else f"in batches of {batch_size}"
    if low is not None and high is not None and low <= 1 <= high:
        return f"{prefix}, no significant difference in speed was measured{suffix}"
    if speedup.value < 1:
        return f"{prefix}, it is slower, {format_ratio(speedup.value)} times as fast as the original{suffix}"
    return f"{prefix}, it is {format_ratio(speedup.value)} times faster{suffix}"


def _describe_sizes(compression: CompressionInfo, artifact: ArtifactInfo) -> str:
    original = compression.original
    if original is None:
        return ""
    phrases = [
        _describe_ratio("its file is {} times", ("smaller", "larger"), original.bytes, artifact.bytes, "B"),
        _describe_ratio(
            "it has {} times", ("fewer multiply-accumulates", "more multiply-accumulates"), original.macs,
            artifact.macs,
        ),
        _describe_ratio(
            "it has {} times", ("fewer parameters", "more parameters"), original.parameters, artifact.parameters,
        ),
    ]  # fmt: skip
    text = "; ".join(filter(None, phrases))
    return f"{text[0].upper()}{text[1:]}." if text else ""


def _describe_ratio(
    template: str,
    directions: tuple[str, str],
    original_value: float | None,
    artifact_value: float | None,
    unit: str = "",
) -> str:
    """Compares two counts. Empty if they are almost equal, or one is unknown."""
    if not original_value or not artifact_value or 1 / _EQUAL_RATIO < original_value / artifact_value < _EQUAL_RATIO:
        return ""
    factor, direction = (
        (original_value / artifact_value, directions[0])
        if original_value > artifact_value
        else (artifact_value / original_value, directions[1])
    )
    values_text = f"{format_count(artifact_value, unit)}, the original {format_count(original_value, unit)}"
    return f"{template.format(format_ratio(factor))} {direction} ({values_text})"


def _missed_targets(compression: CompressionInfo, artifact: ArtifactInfo) -> list[str]:
    gains = [
        (quantity, required, compression.gain(artifact, quantity)) for quantity, required in compression.target.items()
    ]
    return [
        f"It misses the target of {format_ratio(required)} {_GAIN_PHRASES[quantity]}: it is "
        f"{format_ratio(gain) or 'unknown'}."
        for quantity, required, gain in gains
        if gain is None or gain < required
    ]
