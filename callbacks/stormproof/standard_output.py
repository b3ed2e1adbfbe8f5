"""Prints to standard output without ever ending a run."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

ASCII = str.maketrans({"→": "->", "…": "..."})
"""Replacements for streams whose encoding lacks these characters."""
_reader_left = False


def print_text(text: str) -> None:
    """Writes text to standard output and flushes it. Never raises.

    Characters that the encoding of the stream lacks are replaced or escaped. If the stream is closed, full, or a pipe
    without a reader, all later output is discarded. A warning on standard error says so if it is full.

    Args:
        text: Text with its line breaks.
    """
    stream: Any = sys.stdout
    if stream is None:  # the process was started with standard output closed
        return
    try:
        _write(stream, text)
    except ValueError:  # a program closed it
        sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 (until Python exits)
    except OSError as error:
        _discard(stream, error)


def reader_has_left() -> bool:
    """Returns whether standard output is a pipe whose reader has exited, as in ``… | head``."""
    return _reader_left


def _write(stream: Any, text: str) -> None:
    encoding = stream.encoding or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        text = text.translate(ASCII).encode(encoding, "backslashreplace").decode(encoding)
    stream.write(text)
    stream.flush()


def _discard(stream: Any, error: OSError) -> None:
    """Redirects a stream to the null device. Its buffer would else fail again when Python exits."""
    global _reader_left  # noqa: PLW0603 (standard output is global, too)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)
    if isinstance(error, BrokenPipeError):
        _reader_left = True
        return
    try:
        sys.stderr.write(f"warning: standard output cannot be written ({error.strerror}); later output is discarded\n")
        sys.stderr.flush()
    except (OSError, ValueError, AttributeError):
        return
