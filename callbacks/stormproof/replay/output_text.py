"""Reads the output of a command for a report."""

from __future__ import annotations

import unicodedata
from pathlib import Path

from stormproof.redaction import redact_output

MAX_BYTES = 20_000
MAX_CHARACTERS = 300


def last_lines(path: Path, count: int = 1) -> str:
    """Returns the last lines of a file that are not empty, without control characters and secrets."""
    try:
        with path.open("rb") as file:
            file.seek(max(path.stat().st_size - MAX_BYTES, 0))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return ""
    lines = [line for line in redact_output(text).replace("\r", "\n").splitlines() if line.strip()]
    return "\n".join(escape(line)[:MAX_CHARACTERS] for line in lines[-count:])


def escape(text: str) -> str:
    """Returns text in which control and format characters are replaced by their escapes."""
    return "".join(
        character.encode("unicode_escape").decode() if unicodedata.category(character)[0] == "C" else character
        for character in text
    )
