"""A file that holds names with their values, as JSON or YAML."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from stormproof_train.errors import UserError


def read_mapping(path: Path, keys: Sequence[str] = (), way_out: str = "put a copy back") -> dict[str, Any] | None:
    """What a file holds; None if it is not there.

    Args:
        path: of the file, by whose name it is YAML or else JSON.
        keys: that have to be among the names.
        way_out: what to do where it is damaged, for the message.

    Raises:
        UserError: if it cannot be read, or holds something else.
    """
    parse = yaml.safe_load if path.suffix == ".yaml" else json.loads
    try:
        content = parse(path.read_bytes())
    except FileNotFoundError:
        return None
    except NotADirectoryError as error:
        raise UserError(f"{path.parent} cannot be a run's folder: {error.strerror}") from error
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise UserError(f"{path} is damaged ({' '.join(str(error).split())}): {way_out}") from error
    if not isinstance(content, dict) or not content.keys() >= set(keys):
        among = f", {', '.join(keys)} among them" if keys else ""
        raise UserError(f"{path} is damaged (it should hold names with their values{among}): {way_out}")
    return content
