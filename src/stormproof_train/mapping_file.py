"""Reads JSON and YAML files that contain mappings."""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import yaml

from stormproof.distributed.rank import is_rank_zero
from stormproof_train.errors import DamagedFileError, UserError
from stormproof_train.path_errors import describe_path_error

_Content = TypeVar("_Content")

MAX_VALUES = 1_000_000
"""Maximum number of values in a YAML file after alias expansion. Nested aliases can expand to billions."""


def read_mapping(
    path: Path, keys: Sequence[str] | Mapping[str, type] = (), fix: str = "restore a copy"
) -> dict[str, Any] | None:
    """Returns the content of a file, or None if it does not exist.

    Args:
        path: Path of the file, read as YAML if it ends with ``.yaml``, else as JSON.
        keys: Required keys, or the types of their values.
        fix: How to repair a damaged file, for the message.

    Raises:
        UserError: If the file cannot be read.
        DamagedFileError: If it does not contain such a mapping.
    """
    parse = yaml.safe_load if path.suffix == ".yaml" else json.loads
    try:
        content = parse(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        if not os.path.isdir(path.parent):  # noqa: PTH112 (Path.is_dir raises if a parent is unreadable)
            raise UserError(f"{path.parent} is not a run folder: {describe_path_error(path, error)}") from error
        raise UserError(f"{path} cannot be read: {describe_path_error(path, error)}") from error
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise DamagedFileError(f"{path} is damaged ({' '.join(str(error).split())}): {fix}") from error
    if path.suffix == ".yaml" and expanded_size(content) > MAX_VALUES:
        raise DamagedFileError(f"{path} is damaged (its YAML aliases expand to more than {MAX_VALUES:,} values): {fix}")
    types = keys if isinstance(keys, Mapping) else dict.fromkeys(keys, object)
    if not isinstance(content, dict) or not all(
        key in content and isinstance(content[key], types[key]) for key in types
    ):
        keys_text = f" with {', '.join(keys)}" if keys else ""
        raise DamagedFileError(f"{path} is damaged (expected a mapping{keys_text}): {fix}")
    return content


def read_unless_damaged(read: Callable[[], _Content | None], problems: list[str] | None = None) -> _Content | None:
    """Returns the result of ``read``, or None if the file is damaged. ``problems`` then gets the message."""
    try:
        return read()
    except DamagedFileError as error:
        if problems is not None:
            problems.append(str(error))
        return None


@cache
def warn_once(message: str) -> None:
    """Issues a warning on rank 0, unless this process has issued it before."""
    if is_rank_zero():
        warnings.warn(message, stacklevel=2)


def check_alias_expansion(file: Path) -> None:
    """Raises UserError for a YAML file whose aliases expand to more than ``MAX_VALUES`` values.

    Ignores files that cannot be read, which Hydra reports.
    """
    try:
        content = yaml.safe_load(file.read_bytes())
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return
    if expanded_size(content) > MAX_VALUES:
        raise UserError(f"{file}: its YAML aliases expand to more than {MAX_VALUES:,} values")


def expanded_size(content: object) -> float:
    """Counts the values of a parsed file after alias expansion.

    Returns:
        Number of values. Infinite if an alias contains itself.

    Example:
        >>> expanded_size(yaml.safe_load("{a: &x [1, 2], b: [*x, *x]}"))
        13
    """
    sizes: dict[int, float] = {}

    def size(value: object) -> float:
        items = [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else []
        if not items:
            return 1
        if id(value) not in sizes:
            sizes[id(value)] = math.inf  # placeholder, so that an alias that contains itself counts as infinite
            sizes[id(value)] = 1 + sum(map(size, items))
        return sizes[id(value)]

    return size(content)
