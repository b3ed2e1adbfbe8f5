"""Prints to standard output and standard error without ever ending a run."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

ASCII_REPLACEMENTS = str.maketrans({"→": "->", "…": "..."})
"""Replacements for streams whose encoding lacks these characters."""
_pipe_is_broken = False


def print_text(text: str) -> None:
    """Writes text to standard output and flushes it. Never raises.

    Replaces or escapes characters that the encoding lacks. Discards all later output if the stream is closed or cannot
    be written. Warns once on standard error, except for a closed stream or a broken pipe.

    Args:
        text: Text with its line breaks.
    """
    stream: Any = sys.stdout
    if stream is None:  # the process was started with standard output closed
        return
    try:
        _write_escaped(stream, text)
    except ValueError:  # the stream is closed
        sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 (until Python exits)
    except OSError as error:
        _discard_output(stream, error)


def print_error(text: str) -> None:
    """Writes text to standard error and flushes it. Never raises: a failure could not be reported anywhere."""
    with suppress(OSError, ValueError, AttributeError):  # a full disk or broken pipe, a closed stream, None
        sys.stderr.write(text)
        sys.stderr.flush()


def discard_unwritten_errors() -> None:
    """Discards buffered text that standard error cannot write. Otherwise, Python exits with code 120."""
    try:
        sys.stderr.flush()
    except OSError:
        _redirect_to_null_device(sys.stderr)
    except (AttributeError, ValueError):  # None, a closed stream
        pass


def pipe_is_broken() -> bool:
    """Returns whether writing to standard output failed with BrokenPipeError, as in ``… | head``."""
    return _pipe_is_broken


def _write_escaped(stream: Any, text: str) -> None:
    """Writes text. Replaces or escapes characters that the encoding lacks."""
    encoding = getattr(stream, "encoding", None) or "utf-8"  # a replaced stream may lack the attribute
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        text = text.translate(ASCII_REPLACEMENTS).encode(encoding, "backslashreplace").decode(encoding)
    stream.write(text)
    stream.flush()


def _discard_output(stream: Any, error: OSError) -> None:
    """Redirects a stream to the null device. Otherwise, flushing its buffer fails again when Python exits."""
    global _pipe_is_broken  # noqa: PLW0603 (standard output is global, too)
    try:
        _redirect_to_null_device(stream)
    except (OSError, AttributeError):  # without a file descriptor
        sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 (until Python exits)
    if isinstance(error, BrokenPipeError):
        _pipe_is_broken = True
        return
    print_error(f"warning: standard output cannot be written ({error.strerror}); later output is discarded\n")


def _redirect_to_null_device(stream: Any) -> None:
    null_descriptor = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null_descriptor, stream.fileno())
    os.close(null_descriptor)
