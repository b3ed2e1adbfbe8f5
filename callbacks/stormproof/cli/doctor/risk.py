"""Something that would lose work."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Risk:
    """What is found, where, why it would lose work, and what to do about it: each for a person to read."""

    summary: str
    location: str
    reason: str
    advice: str
