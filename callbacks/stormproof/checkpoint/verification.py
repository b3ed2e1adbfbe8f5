"""Whether a checkpoint's file is, to the last bit, what was committed, and safe to load."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
import zipfile
from pathlib import Path

from stormproof.checkpoint.manifest import Checkpoint, LogPrefix, decode_manifest
from stormproof.checkpoint.read_retry import retry_read


def read_manifest(path: Path) -> tuple[Checkpoint, LogPrefix]:
    """Reads the manifest beside the ``.ckpt`` file at ``path``.

    Raises:
        ValueError: with the reason, if it is not whole or no plain file.
        OSError: if it is not there or cannot be read.
    """
    manifest_path = path.with_suffix(".json")
    if not _is_regular_file(manifest_path):
        raise ValueError("its manifest is no plain file")
    return decode_manifest(manifest_path.read_bytes(), path)


def find_damage(checkpoint: Checkpoint) -> str | None:
    """Returns why the file is not what its manifest says, or must not be resumed from. None if it is good.

    Reads the whole file once, and lets torch read its structure with ``weights_only=True`` (the tensors are mapped,
    not copied).

    Args:
        checkpoint: what the manifest says.

    Raises:
        OSError: If the file cannot be read, even after two retries.
    """
    try:
        return retry_read(lambda: _find_content_problem(checkpoint) or _find_resume_problem(checkpoint))
    except FileNotFoundError:
        return "its file is gone"


def find_problem(checkpoint: Checkpoint) -> str | None:
    """As :func:`find_damage`, but also describes a file that cannot be read."""
    try:
        return find_damage(checkpoint)
    except OSError as error:
        return describe_read_error(error)


def describe_read_error(error: OSError) -> str:
    """Describes a file that cannot be read."""
    return f"it cannot be read: {error.strerror or error}"


def find_size_problem(checkpoint: Checkpoint) -> str | None:
    """What a glance tells, without reading the file: that it is gone, or of another length; None if neither."""
    path = checkpoint.path
    try:
        if not _is_regular_file(path):
            return "it is no plain file"
        size = path.stat().st_size
    except FileNotFoundError:
        return "its file is gone"
    return None if size == checkpoint.bytes else f"it has {size} bytes and was committed with {checkpoint.bytes}"


def _find_content_problem(checkpoint: Checkpoint) -> str | None:
    problem = find_size_problem(checkpoint)
    if problem is not None:
        return problem
    with checkpoint.path.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != checkpoint.sha256:
            return "its content was changed after it was committed"
    return None


def _find_resume_problem(checkpoint: Checkpoint) -> str | None:
    if not checkpoint.finite:
        return "it holds numbers that are not finite"
    return find_load_problem(checkpoint.path)


def find_load_problem(path: Path) -> str | None:
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
        match = _SYSTEM_ERROR_PATTERN.search(str(error))
        if match:
            raise OSError(int(match[1]), os.strerror(int(match[1]))) from error
        return f"torch does not load it with weights_only=True: {_summarize_error(error)}"
    return None


_REFUSED_TYPE_PATTERN = re.compile(r"unsupported global: GLOBAL (\S+)|unsupported GLOBAL (\S+)", re.IGNORECASE)


_SYSTEM_ERROR_PATTERN = re.compile(r"unable to (?:open|mmap|stat|fstat|read|seek)\b.*\((\d+)\)", re.DOTALL)
"""What torch says if the system refused to open or map a file, with ``errno``."""


def _summarize_error(error: Exception) -> str:
    """What torch complains of, out of a page of advice."""
    text = str(error).strip()
    match = _REFUSED_TYPE_PATTERN.search(text)
    if match:
        return f"it holds {match[1] or match[2]}, which is code and not data"
    message = text.partition("WeightsUnpickler error:")[2].strip() or text or type(error).__name__
    return re.split(r"\n|\. ", message)[0][:200]


def _is_regular_file(path: Path) -> bool:
    """Not a link, which may lead out of the folder, nor a folder or device."""
    return stat.S_ISREG(os.lstat(path).st_mode)
