"""Names of the files of a sharded checkpoint, which torch and Lightning expect."""

from __future__ import annotations

import re

METADATA_FILE = ".metadata"
"""Names, shapes and positions of all tensors, as torch's ``Metadata``."""
UNSHARDED_FILE = "meta.pt"
"""The unsharded state: the checkpoint without parameters and optimizer states."""

_FILE_PATTERN = re.compile(rf"__[0-9]+_[0-9]+\.distcp|{re.escape(METADATA_FILE)}|{re.escape(UNSHARDED_FILE)}")
_TEMPORARY_PATTERN = re.compile(r"\.(.+)\.[0-9a-f]{8}\.tmp")


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
    return _FILE_PATTERN.fullmatch(name) is not None


def is_unfinished_shard_file(name: str) -> bool:
    """Returns whether ``name`` is the name of a file of a sharded checkpoint, or its temporary name.

    Example:
        >>> is_unfinished_shard_file(".__3_0.distcp.0123abcd.tmp"), is_unfinished_shard_file("notes.txt")
        (True, False)
    """
    match = _TEMPORARY_PATTERN.fullmatch(name)
    return is_shard_file(name if match is None else match[1])
