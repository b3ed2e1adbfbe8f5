"""Verifies that the file of a checkpoint is unchanged since its commit and safe to load."""

from __future__ import annotations

import errno
import os
import re
import stat
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO

from stormproof.checkpoint.digest import compute_file_digest, drop_cached_pages
from stormproof.checkpoint.manifest import Checkpoint, LogPrefix, StoredFile, decode_manifest
from stormproof.checkpoint.read_retry import confirm_damage, retry_read

ContentCheck = Callable[[Mapping[str, StoredFile]], str | None]
"""Reads files, by their names in the storage. Returns :data:`CHANGED` if the content of one differs from its hash."""
CHANGED = "its content has changed since it was committed"
"""Problem of a checkpoint whose hash differs from its manifest."""


def read_manifest(path: Path) -> tuple[Checkpoint, LogPrefix]:
    """Reads the manifest of the ``.ckpt`` file at ``path``.

    Raises:
        ValueError: If the manifest is damaged or not a regular file. The message states the reason.
        NotResumableError: If a later version of stormproof wrote the manifest.
        OSError: If the manifest is missing or cannot be read.
    """
    manifest_path = path.with_suffix(".json")
    if not _is_regular_file(manifest_path):
        raise ValueError("its manifest is not a regular file")
    return decode_manifest(manifest_path.read_bytes(), path)


def find_damage(checkpoint: Checkpoint, check_content: ContentCheck | None = None) -> str | None:
    """Returns why the file differs from its manifest or no run may resume from it. None if it is good.

    Reads the whole file once and loads its structure with ``torch.load(weights_only=True, mmap=True)``, which does not
    copy the tensors.

    Args:
        checkpoint: Content of the manifest.
        check_content: Compares the content with the hashes. This process reads all files if None.

    Raises:
        OSError: If the file cannot be read, even after two retries.
    """

    def check_all_files(files: Mapping[str, StoredFile]) -> str | None:
        problems = (find_content_change(checkpoint.path.parent / name, file) for name, file in files.items())
        return next((problem for problem in problems if problem is not None), None)

    def find() -> str | None:
        return (
            find_size_problem(checkpoint)
            or (check_content or check_all_files)(checkpoint.stored_files)
            or find_resume_problem(checkpoint)
        )

    return confirm_damage(lambda: retry_read(find))


def find_problem(checkpoint: Checkpoint) -> str | None:
    """Returns the same as :func:`find_damage`, or a description of a read error."""
    try:
        return find_damage(checkpoint)
    except OSError as error:
        return describe_read_error(error)


def describe_read_error(error: OSError) -> str:
    """Returns a description of a read error."""
    return f"it cannot be read: {error.strerror or error}"


def find_size_problem(checkpoint: Checkpoint) -> str | None:
    """Returns why a file is missing, irregular or of the wrong size, without reading it. None if all are fine."""
    if checkpoint.files is not None and not _is_folder(checkpoint.path):
        return "it is not a folder" if os.path.lexists(checkpoint.path) else "its folder is missing"
    for name, file in checkpoint.stored_files.items():
        path = checkpoint.path.parent / name
        subject = "it" if checkpoint.files is None else path.name
        try:
            if not _is_regular_file(path):
                return f"{subject} is not a regular file"
            size = path.stat().st_size
        except FileNotFoundError:
            return "its file is missing" if checkpoint.files is None else f"its file {path.name} is missing"
        problem = compare_size(size, file, subject)
        if problem is not None:
            return problem
    return None


def compare_size(size: int, file: StoredFile, subject: str = "it") -> str | None:
    """Returns a description of a size in bytes that differs from the one in the manifest. None if they are equal."""
    return None if size == file.bytes else f"{subject} has {size} bytes but was committed with {file.bytes}"


def find_content_change(path: Path, file: StoredFile) -> str | None:
    """Returns :data:`CHANGED` if the content of a file differs from its hash. None if it is unchanged."""
    if compute_file_digest(path, file.algorithm) == file.digest:
        return None
    drop_cached_pages(path)
    return CHANGED


def find_resume_problem(checkpoint: Checkpoint) -> str | None:
    """Returns why no run may resume from an unchanged checkpoint. None if it can be loaded."""
    if not checkpoint.finite:
        return "it contains numbers that are not finite"
    return find_load_problem(checkpoint.path)


def find_load_problem(file: Path | BinaryIO) -> str | None:
    """Returns why ``torch.load(file, weights_only=True)`` refuses the file. None if it loads. Runs no code from it.

    Args:
        file: Path of a file or of a sharded checkpoint's folder, or a seekable file object. From a file object, torch
            2.13 reads everything except the values of the tensors.
    """
    if isinstance(file, Path) and file.is_dir():
        return _find_shard_problem(file)
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


def _find_shard_problem(folder: Path) -> str | None:
    from stormproof.checkpoint.sharding.shard_reader import find_shard_problem  # noqa: PLC0415 (imports torch)

    return find_shard_problem(lambda name: (folder / name).open("rb"), {path.name for path in folder.iterdir()})


_REFUSED_TYPE_PATTERN = re.compile(r"unsupported global: GLOBAL (\S+)|unsupported GLOBAL (\S+)", re.IGNORECASE)


_SYSTEM_ERROR_PATTERN = re.compile(r"unable to (?:open|mmap|stat|fstat|read|seek)\b.*\((\d+)\)", re.DOTALL)
"""Messages of torch if the system refuses to open or map a file, with the value of ``errno``."""


def summarize_refusal(error: Exception) -> str:
    """Returns the first sentence of torch's message, without its advice."""
    text = str(error).strip()
    match = _REFUSED_TYPE_PATTERN.search(text)
    if match:
        return f"it contains {match[1] or match[2]}, which is code and not data"
    message = text.partition("WeightsUnpickler error:")[2].strip() or text or type(error).__name__
    return re.split(r"\n|\. ", message)[0][:200]


def _is_folder(path: Path) -> bool:
    """Returns False for a file, and for a symbolic link, which may lead out of the folder."""
    return path.is_dir() and not path.is_symlink()


def _is_regular_file(path: Path) -> bool:
    """Returns False for a folder, a device or a symbolic link, which may lead out of the folder."""
    return stat.S_ISREG(os.lstat(path).st_mode)
