"""Whether a checkpoint's file is, to the last bit, what was committed, and safe to load."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
import zipfile
from pathlib import Path

from stormproof.checkpoint.manifest import Checkpoint, LogMark, decode
from stormproof.checkpoint.read_retry import retry_read


def read_manifest(path: Path) -> tuple[Checkpoint, LogMark]:
    """Reads the manifest beside the ``.ckpt`` file at ``path``.

    Raises:
        ValueError: with the reason, if it is not whole or no plain file.
        OSError: if it is not there or cannot be read.
    """
    manifest = path.with_suffix(".json")
    if not _is_plain_file(manifest):
        raise ValueError("its manifest is no plain file")
    return decode(manifest.read_bytes(), path)


def damage_of(checkpoint: Checkpoint) -> str | None:
    """Returns why the file is not what its manifest says, or must not be resumed from. None if it is good.

    Reads the whole file once, and lets torch read its structure with ``weights_only=True`` (the tensors are mapped,
    not copied).

    Args:
        checkpoint: what the manifest says.

    Raises:
        OSError: If the file cannot be read, even after two retries.
    """
    try:
        return retry_read(lambda: _differs(checkpoint) or _unusable(checkpoint))
    except FileNotFoundError:
        return "its file is gone"


def problem_with(checkpoint: Checkpoint) -> str | None:
    """As :func:`damage_of`, but also describes a file that cannot be read."""
    try:
        return damage_of(checkpoint)
    except OSError as error:
        return read_failure(error)


def read_failure(error: OSError) -> str:
    """Describes a file that cannot be read."""
    return f"it cannot be read: {error.strerror or error}"


def misfit(checkpoint: Checkpoint) -> str | None:
    """What a glance tells, without reading the file: that it is gone, or of another length; None if neither."""
    path = checkpoint.path
    try:
        if not _is_plain_file(path):
            return "it is no plain file"
        size = path.stat().st_size
    except FileNotFoundError:
        return "its file is gone"
    return None if size == checkpoint.bytes else f"it has {size} bytes and was committed with {checkpoint.bytes}"


def _differs(checkpoint: Checkpoint) -> str | None:
    problem = misfit(checkpoint)
    if problem is not None:
        return problem
    with checkpoint.path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != checkpoint.sha256:
            return "its content was changed after it was committed"
    return None


def _unusable(checkpoint: Checkpoint) -> str | None:
    if not checkpoint.finite:
        return "it holds numbers that are not finite"
    return load_problem(checkpoint.path)


def load_problem(path: Path) -> str | None:
    """Why ``torch.load(path, weights_only=True)`` refuses the file; None if it does not. None of its code is run."""
    if not zipfile.is_zipfile(path):
        return "it is no whole zip archive, as torch.save has written since torch 1.6"
    import torch  # noqa: PLC0415 (it takes a second; a folder can be listed and written to without)

    try:
        torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, Warning):  # a warning is raised only where a filter turns warnings into errors
        raise
    except MemoryError as error:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)) from error
    except Exception as error:  # whatever a crafted file makes torch raise: it is not loaded
        failure = _SYSTEM_FAILURE.search(str(error))
        if failure:
            raise OSError(int(failure[1]), os.strerror(int(failure[1]))) from error
        return f"torch does not load it with weights_only=True: {_reason(error)}"
    return None


_REFUSED_TYPE = re.compile(r"unsupported global: GLOBAL (\S+)|unsupported GLOBAL (\S+)", re.IGNORECASE)


_SYSTEM_FAILURE = re.compile(r"unable to (?:open|mmap|stat|fstat|read|seek)\b.*\((\d+)\)", re.DOTALL)
"""What torch says if the system refused to open or map a file, with ``errno``."""


def _reason(error: Exception) -> str:
    """What torch complains of, out of a page of advice."""
    text = str(error).strip()
    refused = _REFUSED_TYPE.search(text)
    if refused:
        return f"it holds {refused[1] or refused[2]}, which is code and not data"
    first = text.partition("WeightsUnpickler error:")[2].strip() or text or type(error).__name__
    return re.split(r"\n|\. ", first)[0][:200]


def _is_plain_file(path: Path) -> bool:
    """Not a link, which may lead out of the folder, nor a folder or device."""
    return stat.S_ISREG(os.lstat(path).st_mode)
