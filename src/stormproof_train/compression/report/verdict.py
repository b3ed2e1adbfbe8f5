"""States the outcome of a compression in a few sentences, using only its numbers."""

from __future__ import annotations

from stormproof_train.compression.records import CompressionNumbers
from stormproof_train.compression.report.compression_info import ArtifactInfo, CompressionInfo
from stormproof_train.compression.report.quantities import format_count, format_milliseconds, format_ratio
from stormproof_train.console import format_value
from stormproof_train.evaluation.intervals import Interval

_MINIMUM_REASONS = {
    "latency": "no other artifact is significantly faster",
    "size": "it has the smallest file",
    "macs": "it has the fewest multiply-accumulates",
}


def tone(compression: CompressionInfo) -> str:
    """Returns ``bad`` without a recommended artifact, ``good`` if nothing speaks against it, otherwise ``doubtful``."""
    best = compression.best
    if best is None:
        return "bad"
    doubts = (
        not best.is_within_budget,
        compression.minimize == "latency" and not _is_significantly_faster(compression, best),
        not compression.reaches_target(best),
        best.degradation is None or (compression.allowed is None and best.degradation.value > 0),
        best.test_degradation is not None
        and compression.allowed is not None
        and best.test_degradation.value > compression.allowed,
    )
    return "doubtful" if any(doubts) else "good"


def sentences(numbers: CompressionNumbers, compression: CompressionInfo) -> list[str]:
    """Describes the recommended artifact, its degradation and gains, its test and how it was selected.

    Args:
        numbers: Content of ``answer.json``.
        compression: The same numbers, converted.
    """
    best = compression.best
    if best is None:
        paragraphs = [_describe_no_recommendation(numbers), _describe_closest(compression)]
    else:
        paragraphs = [
            _describe_recommendation(compression, best),
            _describe_degradation(compression, best),
            _describe_test(compression, best),
            *_describe_gains(compression, best),
            _describe_selection(numbers, compression),
        ]
    return [sentence for sentence in [*paragraphs, _describe_counts(numbers, compression)] if sentence]


def _describe_recommendation(compression: CompressionInfo, best: ArtifactInfo) -> str:
    eligible_artifacts = [
        artifact
        for artifact in compression.compressed_artifacts
        if artifact.is_within_budget and compression.reaches_target(artifact)
    ]
    budget_text = f"within the budget of {compression.budget}" if compression.budget else ""
    target_text = f"that reach the target ({_describe_target(compression)})" if compression.target else ""
    if len(eligible_artifacts) < 2:
        singular_target_text = target_text.replace("reach ", "reaches ")
        reason = f"it is the only artifact {' '.join(filter(None, (budget_text, singular_target_text)))}"
    else:
        default_reason = f"it has the smallest degradation of {compression.metric.name}"
        minimum_reason = _MINIMUM_REASONS[compression.minimize] if compression.budget else default_reason
        conditions = " ".join(filter(None, (budget_text, target_text)))
        reason = f"of {len(eligible_artifacts):,} artifacts {conditions} {minimum_reason}"
    return f"{best.name} is recommended: {reason}."


def _describe_degradation(compression: CompressionInfo, best: ArtifactInfo) -> str:
    metric, original = compression.metric, compression.original
    if best.degradation is None:
        return f"Its degradation of {metric.name} on validation is unknown, because a value is not finite."
    comparison = ""
    if best.validation is not None and original is not None and original.validation is not None:
        comparison = f": {format_value(best.validation.value)}, the original {format_value(original.validation.value)}"
    return f"On validation, it {_degradation_phrase(compression, best.degradation)}{comparison}."


def _degradation_phrase(compression: CompressionInfo, degradation: Interval) -> str:
    """Describes a degradation or improvement with its interval."""
    metric = compression.metric
    verb = "loses" if degradation.value >= 0 else "gains"
    phrase = f"{verb} {metric.describe_degradation(abs(degradation.value))}"
    if degradation.low is None or degradation.high is None:
        return f"{phrase}, possibly by chance, because there is no interval"
    low, high = (degradation.low, degradation.high) if degradation.value >= 0 else (-degradation.high, -degradation.low)
    return f"{phrase} (95% interval {metric.format_degradation(low)} to {metric.format_degradation(high)})"


def _describe_test(compression: CompressionInfo, best: ArtifactInfo) -> str:
    if best.test is None:
        return "It was not tested on the test split."
    if best.test_degradation is None:
        return (
            f"On the test split, its {compression.metric.name} is {format_value(best.test.value)}; "
            "the value of the original is unknown."
        )
    mcnemar_text = ""
    if best.mcnemar is not None:
        original_only, artifact_only, p_value = best.mcnemar
        p_text = "" if p_value is None else f"; McNemar's test: p = {p_value:.2g}"
        mcnemar_text = (
            f" Only the original is correct on {original_only:,} of its samples, only {best.name} on "
            f"{artifact_only:,}{p_text}."
        )
    budget_text = _compare_with_budget(compression, best.test_degradation)
    return (
        f"On the test split, it {_degradation_phrase(compression, best.test_degradation)}{budget_text}.{mcnemar_text}"
    )


def _compare_with_budget(compression: CompressionInfo, degradation: Interval) -> str:
    allowed = compression.allowed
    if allowed is None:
        return ""
    if degradation.value > allowed:
        certainty_note = "" if degradation.low is not None and degradation.low > allowed else ", possibly by chance"
        return f": more than the budget of {compression.budget}{certainty_note}"
    if degradation.high is not None and degradation.high > allowed:
        return f": within the budget of {compression.budget}, but its interval exceeds it"
    return f": within the budget of {compression.budget}"


def _describe_selection(numbers: CompressionNumbers, compression: CompressionInfo) -> str:
    samples = numbers["samples"]
    rule = "the upper end of the interval of the degradation must be within the budget"
    selection = f"It was selected on {samples['validation']:,} validation samples only"
    text = f"{selection}: {rule}." if compression.budget else f"{selection}, without a budget."
    if samples["test"] and any(artifact.test is not None for artifact in compression.artifacts):
        return f"{text} The test split ({samples['test']:,} samples) was used only afterwards."
    return text


def _describe_no_recommendation(numbers: CompressionNumbers) -> str:
    reason = str(numbers["why_none"] or "").rstrip(".")
    return f"No artifact is recommended: {reason}." if reason else "No artifact is recommended."


def _describe_closest(compression: CompressionInfo) -> str:
    """Describes the artifact with the smallest upper end of its degradation, if all exceed the budget."""
    bounds = [
        (artifact.degradation.high, artifact)
        for artifact in compression.compressed_artifacts
        if artifact.degradation and artifact.degradation.high is not None
    ]
    if not bounds or any(artifact.is_within_budget for artifact in compression.compressed_artifacts):
        return ""
    _, closest_artifact = min(bounds, key=lambda pair: pair[0])
    assert closest_artifact.degradation is not None
    return (
        f"The closest to the budget of {compression.budget} is {closest_artifact.name}, which "
        f"{_degradation_phrase(compression, closest_artifact.degradation)}."
    )


def _describe_counts(numbers: CompressionNumbers, compression: CompressionInfo) -> str:
    compressed_artifacts = compression.compressed_artifacts
    num_beyond_budget = sum(not artifact.is_within_budget for artifact in compressed_artifacts)
    num_dominated = sum(
        artifact.is_within_budget and artifact.dominated_by is not None for artifact in compressed_artifacts
    )
    phrases = [
        *([f"{num_beyond_budget:,} over the budget"] if num_beyond_budget else []),
        *([f"{num_dominated:,} within it but dominated by another" if compression.budget
           else f"{num_dominated:,} dominated by another"] if num_dominated else []),
    ]  # fmt: skip
    plural_suffix = "s" * (len(compressed_artifacts) != 1)
    num_failed = sum(str(run["outcome"]).startswith("failed") for run in numbers["fine_tuning"])
    failure_text = f" {num_failed:,} fine-tuning run{'s' * (num_failed != 1)} failed." if num_failed else ""
    num_skipped = len(numbers["skipped"])
    skipped_text = f" See {num_skipped:,} note{'s' * (num_skipped != 1)} on limitations." if num_skipped else ""
    details = f": {', '.join(phrases)}" if phrases else ""
    return (
        f"{len(compressed_artifacts):,} artifact{plural_suffix} in addition to the "
        f"original{details}.{failure_text}{skipped_text}"
    )


_GAIN_PHRASES = {"speedup": "times faster", "size": "times smaller on disk", "macs": "times fewer multiply-accumulates"}
_EQUAL_RATIO = 1.005
"""Maximum ratio of two counts that are shown as equal."""


def _describe_target(compression: CompressionInfo) -> str:
    """Describes the target."""
    return " and ".join(
        f"{format_ratio(required)} {_GAIN_PHRASES[quantity]}" for quantity, required in compression.target.items()
    )


def _is_significantly_faster(compression: CompressionInfo, artifact: ArtifactInfo) -> bool:
    """Returns True if it is significantly faster than the original for the smallest batch."""
    speedup = artifact.speedup.get(compression.batch_sizes[0]) if compression.batch_sizes else None
    return speedup is not None and (speedup.value if speedup.low is None else speedup.low) > 1


def _describe_gains(compression: CompressionInfo, artifact: ArtifactInfo) -> list[str]:
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
