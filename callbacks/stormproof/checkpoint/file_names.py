"""Formats and parses the names of checkpoint files.

``000012-step-600.ckpt`` is the twelfth commit of its folder, at step 600. The sequence number makes the name unique,
because a run that rolls back to an older checkpoint reaches step 600 again.
"""

from __future__ import annotations

import re

_STEM_PATTERN = r"([0-9]{6,})-step-(0|[1-9][0-9]*)"
_FILE_PATTERN = re.compile(rf"({_STEM_PATTERN})\.(ckpt|json)")
_TEMPORARY_PATTERN = re.compile(rf"\.{_STEM_PATTERN}\.(ckpt|json)\.[0-9a-f]{{8}}\.tmp")

LOG_FILE_NAME = "commits.log"
QUARANTINE_FOLDER_NAME = "quarantine"


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
