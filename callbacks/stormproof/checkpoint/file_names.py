"""What the store's files are called.

``000012-step-600.ckpt`` is the twelfth commit of its folder, at step 600. The number of the commit makes the name
unique: a run that goes back to an older checkpoint reaches step 600 again.
"""

from __future__ import annotations

import re

_STEM = r"([0-9]{6,})-step-(0|[1-9][0-9]*)"
_FILE = re.compile(rf"({_STEM})\.(ckpt|json)")
_TEMPORARY = re.compile(rf"\.{_STEM}\.(ckpt|json)\.[0-9a-f]{{8}}\.tmp")

LOG = "commits.log"
QUARANTINE = "quarantine"


def stem_of(sequence: int, step: int) -> str:
    """The name of a commit, without ``.ckpt`` or ``.json``.

    Example:
        >>> stem_of(sequence=12, step=600)
        '000012-step-600'
    """
    return f"{sequence:06d}-step-{step}"


def parse(file: str) -> tuple[str, int, int] | None:
    """The stem, sequence and step of a checkpoint's or manifest's file name; None for any other name.

    Example:
        >>> parse("000012-step-600.json")
        ('000012-step-600', 12, 600)
        >>> parse("last.ckpt")
    """
    match = _FILE.fullmatch(file)
    if match is None or stem_of(int(match[2]), int(match[3])) != match[1]:
        return None
    return match[1], int(match[2]), int(match[3])


def is_stem(name: object) -> bool:
    """Whether ``name`` is one that :func:`stem_of` gives."""
    # no file system takes a name of 200 characters and more; int() does not take thousands of digits
    return isinstance(name, str) and len(name) < 200 and parse(f"{name}.ckpt") is not None


def sequence_in(file: str) -> int:
    """The number of the commit that ``file`` belongs to, temporary names included; 0 if it belongs to none.

    Example:
        >>> sequence_in(".000012-step-600.ckpt.0123abcd.tmp")
        12
        >>> sequence_in("last.ckpt")
        0
    """
    match = _TEMPORARY.fullmatch(file)
    if match is not None:
        return int(match[1])
    parsed = parse(file)
    return parsed[1] if parsed else 0


def is_temporary(file: str) -> bool:
    """Whether ``file`` is the temporary name of a checkpoint or manifest of ours."""
    return _TEMPORARY.fullmatch(file) is not None
