"""Formats and parses the names of checkpoint files.

``000012-step-600.ckpt`` is the twelfth commit of its folder, at step 600. The sequence number makes the name unique,
because a run that rolls back to an older checkpoint reaches step 600 again. A sharded checkpoint is a folder with such
a name. torch and Lightning expect the names of its files.
"""

from __future__ import annotations

import re

_STEM_PATTERN = r"([0-9]{6,})-step-(0|[1-9][0-9]*)"
_FILE_PATTERN = re.compile(rf"({_STEM_PATTERN})\.(ckpt|json)")
_TEMPORARY_PATTERN = re.compile(rf"\.{_STEM_PATTERN}\.(ckpt|json)\.[0-9a-f]{{8}}\.tmp")

LOG_FILE_NAME = "commits.log"
QUARANTINE_FOLDER_NAME = "quarantine"
METADATA_FILE = ".metadata"
"""Names, shapes and positions of all tensors, as torch's ``Metadata``."""
UNSHARDED_FILE = "meta.pt"
"""The unsharded state: the checkpoint without parameters and optimizer states."""

_SHARD_PATTERN = re.compile(rf"__[0-9]+_[0-9]+\.distcp|{re.escape(METADATA_FILE)}|{re.escape(UNSHARDED_FILE)}")
_TEMPORARY_SHARD_PATTERN = re.compile(r"\.(.+)\.[0-9a-f]{8}\.tmp")


def format_stem(sequence: int, step: int) -> str:
    """Returns the name of a commit, without ``.ckpt`` or ``.json``.

    Example:
        >>> format_stem(sequence=12, step=600)
        '000012-step-600'
    """
    return f"{sequence:06d}-step-{step}"


def parse_file_name(file: str) -> tuple[str, int, int] | None:
    """Returns the stem, sequence number and step of the file name of a checkpoint or manifest. None for other names.

    Example:
        >>> parse_file_name("000012-step-600.json")
        ('000012-step-600', 12, 600)
        >>> parse_file_name("last.ckpt")
    """
    match = _FILE_PATTERN.fullmatch(file)
    if match is None or format_stem(int(match[2]), int(match[3])) != match[1]:
        return None
    return match[1], int(match[2]), int(match[3])


def is_stem(name: object) -> bool:
    """Returns whether ``name`` is in the format of :func:`format_stem`."""
    # 200 is near the limit of file systems (255 bytes), and int() refuses thousands of digits
    return isinstance(name, str) and len(name) < 200 and parse_file_name(f"{name}.ckpt") is not None


def parse_sequence(file: str) -> int:
    """Returns the sequence number of the commit of ``file``, which may be a temporary name. 0 for other names.

    Example:
        >>> parse_sequence(".000012-step-600.ckpt.0123abcd.tmp")
        12
        >>> parse_sequence("last.ckpt")
        0
    """
    match = _TEMPORARY_PATTERN.fullmatch(file)
    if match is not None:
        return int(match[1])
    name_parts = parse_file_name(file)
    return name_parts[1] if name_parts else 0


def is_temporary(file: str) -> bool:
    """Returns whether ``file`` is the temporary name of a checkpoint or manifest."""
    return _TEMPORARY_PATTERN.fullmatch(file) is not None


def format_shard_name(rank: int) -> str:
    """Returns the name of the file that a rank writes.

    Example:
        >>> format_shard_name(3)
        '__3_0.distcp'
    """
    return f"__{rank}_0.distcp"


def is_shard_file(name: str) -> bool:
    """Returns whether ``name`` is the name of a file of a sharded checkpoint.

    Example:
        >>> is_shard_file("__3_0.distcp"), is_shard_file(".metadata"), is_shard_file("../meta.pt")
        (True, True, False)
    """
    return _SHARD_PATTERN.fullmatch(name) is not None


def is_unfinished_shard_file(name: str) -> bool:
    """Returns whether ``name`` is the name of a file of a sharded checkpoint, or its temporary name.

    Example:
        >>> is_unfinished_shard_file(".__3_0.distcp.0123abcd.tmp"), is_unfinished_shard_file("notes.txt")
        (True, False)
    """
    match = _TEMPORARY_SHARD_PATTERN.fullmatch(name)
    return is_shard_file(name if match is None else match[1])
