"""Options of config groups, and values as command-line overrides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path


def list_options(folders: Sequence[Path], group: str) -> list[tuple[str, str]]:
    """Returns the options of a config group and the first comment line of their files."""
    files = {
        str(file.relative_to(folder / group).with_suffix("")): file
        for folder in folders
        for file in (folder / group).rglob("*.yaml")
    }
    return [(name, _first_comment(file)) for name, file in sorted(files.items())]


def _first_comment(file: Path) -> str:
    lines = (line.strip() for line in file.read_text().splitlines())
    comments = (line[1:].strip() for line in lines if line.startswith("#"))
    return next((line for line in comments if not line.startswith("@package")), "")


def find_config_dir(argv: Sequence[str]) -> Path | None:
    """Returns the folder after ``--config-dir``, or None if the option is missing."""
    for flag, value in pairwise([*argv, ""]):
        if flag in {"--config-dir", "-cd"}:
            return Path(value)
        if flag.startswith("--config-dir="):
            return Path(flag.partition("=")[2])
    return None


def format_override(value: object) -> str:
    """Formats a value for a command-line override."""
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {format_override(item)}' for key, item in value.items())}}}"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
