"""Checks that a file is safe to load, and explains why torch refuses it."""

from __future__ import annotations

import errno
import os
import re
import zipfile
from pathlib import Path
from typing import BinaryIO

_REFUSED_TYPE_PATTERN = re.compile(r"unsupported global: GLOBAL (\S+)|unsupported GLOBAL (\S+)", re.IGNORECASE)
_SYSTEM_ERROR_PATTERN = re.compile(r"unable to (?:open|mmap|stat|fstat|read|seek)\b.*\((\d+)\)", re.DOTALL)
"""Messages of torch if the system refuses to open or map a file, with the value of ``errno``."""


def find_load_problem(file: Path | BinaryIO) -> str | None:
    """Returns why ``torch.load(file, weights_only=True)`` refuses the file. None if it loads. Runs no code from it.

    Args:
        file: Path of a file, or a seekable file object. From a file object, torch 2.13 reads everything except the
            values of the tensors.
    """
    if not zipfile.is_zipfile(file):
        return "it is not a complete zip archive, the format of torch.save since torch 1.6"
    import torch  # noqa: PLC0415 (takes a second; not needed to list a folder or write to it)

    try:
        if isinstance(file, Path):
            torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        else:
            file.seek(0)
            torch.load(file, map_location="meta", weights_only=True)
    except (OSError, Warning):  # a warning is raised only if a filter turns warnings into errors
        raise
    except MemoryError as error:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)) from error
    except Exception as error:  # a crafted file can make torch raise any exception
        system_error = find_system_error(error)
        if system_error is not None:
            raise system_error from error
        return f"torch.load(weights_only=True) refuses it: {summarize_refusal(error)}"
    return None


def find_system_error(error: Exception) -> OSError | None:
    """Returns the OSError that torch reports as another exception. None if the system is not the cause."""
    match = _SYSTEM_ERROR_PATTERN.search(str(error))
    return OSError(int(match[1]), os.strerror(int(match[1]))) if match else None


def summarize_refusal(error: Exception) -> str:
    """Returns the first sentence of torch's message, without its advice."""
    text = str(error).strip()
    match = _REFUSED_TYPE_PATTERN.search(text)
    if match:
        return f"it contains {match[1] or match[2]}, which is code and not data"
    message = text.partition("WeightsUnpickler error:")[2].strip() or text or type(error).__name__
    return re.split(r"\n|\. ", message)[0][:200]
