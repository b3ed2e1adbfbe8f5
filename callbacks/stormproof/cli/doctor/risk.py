"""A risk of data loss."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Risk:
    """A risk of data loss, as text for users.

    Attributes:
        summary: The problem.
        location: File, folder or setting that has the problem.
        reason: How it can lose data.
        advice: How to fix it.
    """

    summary: str
    location: str
    reason: str
    advice: str
