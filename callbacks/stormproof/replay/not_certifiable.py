"""The error of a command about which certification cannot make a statement."""

from __future__ import annotations

from stormproof.errors import StormproofError


class NotCertifiable(StormproofError):  # noqa: N818 (a verdict, not a failure)
    """The command cannot be certified. The message is one sentence with the reason, and one with a fix."""

    exit_code = 2
