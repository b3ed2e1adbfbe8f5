"""Reads JSON and YAML files that contain mappings."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from stormproof_train.broken_links import describe_path_error
from stormproof_train.errors import UserError

MAX_VALUES = 1_000_000
"""Maximum number of values in a YAML file after alias expansion. Nested aliases can expand to billions."""


def read_mapping(path: Path, keys: Sequence[str] = (), fix: str = "restore a copy") -> dict[str, Any] | None:
    """Returns the content of a file, or None if it does not exist.

    Args:
        path: Path of the file, read as YAML if it ends with ``.yaml``, else as JSON.
        keys: Required keys.
        fix: How to repair a damaged file, for the message.

    Raises:
        UserError: If the file cannot be read, or does not contain such a mapping.
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
        raise UserError(f"{path} is damaged ({' '.join(str(error).split())}): {fix}") from error
    if path.suffix == ".yaml" and expanded_size(content) > MAX_VALUES:
        raise UserError(f"{path} is damaged (its YAML aliases expand to more than {MAX_VALUES:,} values): {fix}")
    if not isinstance(content, dict) or not content.keys() >= set(keys):
        keys_text = f" with {', '.join(keys)}" if keys else ""
        raise UserError(f"{path} is damaged (expected a mapping{keys_text}): {fix}")
    return content


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
