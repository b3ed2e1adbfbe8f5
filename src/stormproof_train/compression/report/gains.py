"""What an artifact gains over the original, in sentences."""

from __future__ import annotations

from stormproof_train.compression.report.artifacts import Artifact, Compression
from stormproof_train.compression.report.quantities import milliseconds, prefixed, ratio

_TIMES = {"speedup": "times faster", "size": "times smaller on disk", "macs": "times fewer multiply-accumulates"}
_SAME = 1.005
"""Up to so many times is as many."""


def target_in_words(compression: Compression) -> str:
    """What was wanted."""
    return " and ".join(f"{ratio(wanted)} {_TIMES[kind]}" for kind, wanted in compression.target.items())


def speed_is_shown(compression: Compression, artifact: Artifact) -> bool:
    """Whether it is faster than the original for sure, with the smallest batch."""
    speedup = artifact.speedup.get(compression.batches[0]) if compression.batches else None
    return speedup is not None and (speedup.value if speedup.low is None else speedup.low) > 1


def gained(compression: Compression, artifact: Artifact) -> list[str]:
    """What it gains in time, in size and in multiply-accumulates, and what of the target it misses."""
    return [
        *([speeds] if (speeds := _speeds(compression, artifact)) else []),
        *([sizes] if (sizes := _sizes(compression, artifact)) else []),
        *_missed(compression, artifact),
    ]


def _speeds(compression: Compression, artifact: Artifact) -> str:
    told = [told for batch in compression.batches if (told := _speed(artifact, batch))]
    return f"{'; '.join(told)}." if told else ""


def _speed(artifact: Artifact, batch: str) -> str:
    speedup = artifact.speedup.get(batch)
    if speedup is None:
        return ""
    before, after = artifact.in_turn.get(batch), artifact.median(batch)
    took = "" if None in (before, after) else f"{milliseconds(after)} ms, the original {milliseconds(before)} in turn"
    low, high = speedup.low, speedup.high
    rounds = "" if low is None or high is None else f"95% interval {ratio(low)} to {ratio(high)}"
    known = "; ".join(filter(None, (rounds, took)))
    told = f" ({known})" if known else ""
    size = "For a single sample" if batch == "1" else f"in batches of {batch}"
    if low is not None and high is not None and low <= 1 <= high:
        return f"{size} no difference in speed could be measured{told}"
    if speedup.value < 1:
        return f"{size} it is slower, {ratio(speedup.value)} times as fast as the original{told}"
    return f"{size} it is {ratio(speedup.value)} times faster{told}"


def _sizes(compression: Compression, artifact: Artifact) -> str:
    original = compression.original
    if original is None:
        return ""
    told = [
        _compared("its file is {} times", ("smaller", "larger"), original.bytes, artifact.bytes, "B"),
        _compared("it has {} times", ("fewer multiply-accumulates", "more multiply-accumulates"), original.macs,
                  artifact.macs),
        _compared("it has {} times", ("fewer parameters", "more parameters"), original.parameters,
                  artifact.parameters),
    ]  # fmt: skip
    known = "; ".join(filter(None, told))
    return f"{known[0].upper()}{known[1:]}." if known else ""


def _compared(
    told: str, less_or_more: tuple[str, str], before: float | None, after: float | None, unit: str = ""
) -> str:
    """Two counts beside each other; nothing where they are as good as equal, or one is not known."""
    if not before or not after or 1 / _SAME < before / after < _SAME:
        return ""
    times, what = (before / after, less_or_more[0]) if before > after else (after / before, less_or_more[1])
    both = f"{prefixed(after, unit)}, the original {prefixed(before, unit)}"
    return f"{told.format(ratio(times))} {what} ({both})"


def _missed(compression: Compression, artifact: Artifact) -> list[str]:
    found = [(kind, wanted, compression.gain(artifact, kind)) for kind, wanted in compression.target.items()]
    return [
        f"It misses the target of {ratio(wanted)} {_TIMES[kind]}: it is {ratio(gain) or 'not known'}."
        for kind, wanted, gain in found
        if gain is None or gain < wanted
    ]
