"""What a compression came to, in a few sentences, and no more than its numbers say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stormproof_train.compression.report.artifacts import Artifact, Compression
from stormproof_train.compression.report.gains import gained, speed_is_shown, target_in_words
from stormproof_train.console import shown
from stormproof_train.evaluation.intervals import Interval

_LEAST = {
    "latency": "none is surely faster than it",
    "size": "it has the smallest file",
    "macs": "it has the fewest multiply-accumulates",
}


def tone(compression: Compression) -> str:
    """``bad`` without an answer, ``good`` with one that nothing speaks against, else ``doubtful``."""
    best = compression.best
    if best is None:
        return "bad"
    doubts = (
        not best.within,
        compression.minimize == "latency" and not speed_is_shown(compression, best),
        not compression.reaches_target(best),
        best.lost is None or (compression.allowed is None and best.lost.value > 0),
        best.test_lost is not None and compression.allowed is not None and best.test_lost.value > compression.allowed,
    )
    return "doubtful" if any(doubts) else "good"


def sentences(numbers: Mapping[str, Any], compression: Compression) -> list[str]:
    """What is recommended, what it costs and gains, what the test split says, what the choice was made by.

    Args:
        numbers: as :func:`stormproof_train.compression.report.compression_page.compression_page` takes them.
        compression: the same, read.
    """
    best = compression.best
    if best is None:
        told = [_nothing(numbers), _closest(compression)]
    else:
        told = [
            _recommended(compression, best),
            _cost(compression, best),
            _tested(compression, best),
            *gained(compression, best),
            _decided(numbers, compression),
        ]
    return [sentence for sentence in [*told, _counts(numbers, compression)] if sentence]


def _recommended(compression: Compression, best: Artifact) -> str:
    fit = [each for each in compression.smaller if each.within and compression.reaches_target(each)]
    budget = f"within the budget of {compression.budget}" if compression.budget else ""
    target = f"that reach the target ({target_in_words(compression)})" if compression.target else ""
    if len(fit) < 2:
        reaches = target.replace("reach ", "reaches ")
        why = f"it is the only artifact {' '.join(filter(None, (budget, reaches)))}"
    else:
        loses_least = f"it has the smallest loss of {compression.metric.name}"
        least = _LEAST[compression.minimize] if compression.budget else loses_least
        why = f"of {len(fit):,} artifacts {' '.join(filter(None, (budget, target)))} {least}"
    return f"{best.name} is recommended: {why}."


def _cost(compression: Compression, best: Artifact) -> str:
    metric, original = compression.metric, compression.original
    if best.lost is None:
        return f"What it loses of {metric.name} on validation is not known: a value is not finite."
    compared = ""
    if best.validation is not None and original is not None and original.validation is not None:
        compared = f": {shown(best.validation.value)}, the original {shown(original.validation.value)}"
    return f"On validation it {_loses(compression, best.lost)}{compared}."


def _loses(compression: Compression, lost: Interval) -> str:
    """What is lost or gained, with its interval, and whether that may be chance."""
    metric = compression.metric
    verb = "loses" if lost.value >= 0 else "gains"
    told = f"{verb} {metric.lost_in_words(abs(lost.value))}"
    if lost.low is None or lost.high is None:
        return f"{told}, which may be chance, as there is no interval"
    low, high = (lost.low, lost.high) if lost.value >= 0 else (-lost.high, -lost.low)
    return f"{told} (95% interval {metric.lost_text(low)} to {metric.lost_text(high)})"


def _tested(compression: Compression, best: Artifact) -> str:
    if best.test is None:
        return "The test split has not been read for it."
    if best.test_lost is None:
        return (
            f"On the test split its {compression.metric.name} is {shown(best.test.value)}; the original's is not known."
        )
    counted = ""
    if best.mcnemar is not None:
        first, second, p_value = best.mcnemar
        p_told = "" if p_value is None else f"; McNemar's test: p = {p_value:.2g}"
        counted = f" The original alone is right on {first:,} of its samples, {best.name} alone on {second:,}{p_told}."
    against = _against_budget(compression, best.test_lost)
    return f"On the test split it {_loses(compression, best.test_lost)}{against}.{counted}"


def _against_budget(compression: Compression, lost: Interval) -> str:
    allowed = compression.allowed
    if allowed is None:
        return ""
    if lost.value > allowed:
        sure = "" if lost.low is not None and lost.low > allowed else ", though that may be chance"
        return f": more than the budget of {compression.budget} allows{sure}"
    if lost.high is not None and lost.high > allowed:
        return f": within the budget of {compression.budget}, though its interval ends beyond it"
    return f": within the budget of {compression.budget}"


def _decided(numbers: Mapping[str, Any], compression: Compression) -> str:
    samples = numbers["samples"]
    rule = "the worse end of the interval of what is lost there has to be within the budget"
    chosen = f"The choice was made on {samples['validation']:,} validation samples alone"
    told = f"{chosen}: {rule}." if compression.budget else f"{chosen}; no budget limits what is lost."
    if samples["test"] and any(each.test is not None for each in compression.artifacts):
        return f"{told} The test split ({samples['test']:,} samples) was read afterwards and decided nothing."
    return told


def _nothing(numbers: Mapping[str, Any]) -> str:
    why = str(numbers["why_none"] or "").rstrip(".")
    return f"Nothing is recommended, as {why}." if why else "Nothing is recommended."


def _closest(compression: Compression) -> str:
    """What lost the least at the worse end of its interval, where all lost too much."""
    lost = [(each.lost.high, each) for each in compression.smaller if each.lost and each.lost.high is not None]
    if not lost or any(each.within for each in compression.smaller):
        return ""
    _, closest = min(lost, key=lambda pair: pair[0])
    assert closest.lost is not None
    return (
        f"Closest to the budget of {compression.budget} is {closest.name}, which {_loses(compression, closest.lost)}."
    )


def _counts(numbers: Mapping[str, Any], compression: Compression) -> str:
    others = compression.smaller
    beyond = sum(not each.within for each in others)
    beaten = sum(each.within and each.beaten_by is not None for each in others)
    told = [
        *([f"{beyond:,} beyond the budget"] if beyond else []),
        *([f"{beaten:,} within it but beaten by another" if compression.budget else f"{beaten:,} beaten by another"]
          if beaten else []),
    ]  # fmt: skip
    many = "s" * (len(others) != 1)
    failed = sum(str(each["became"]).startswith("failed") for each in numbers["fine_tuning"])
    runs = f" {failed:,} fine-tuning run{'s' * (failed != 1)} failed." if failed else ""
    left = len(numbers["skipped"])
    skipped = f" {left:,} thing{'s' * (left != 1)} could not be done." if left else ""
    listed = f": {', '.join(told)}" if told else ""
    return f"{len(others):,} artifact{many} beside the original{listed}.{runs}{skipped}"
