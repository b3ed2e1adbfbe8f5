"""By what a checkpoint was written."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version

PACKAGES = ("torch", "pytorch-lightning", "stormproof")


@cache
def collect_versions() -> Mapping[str, str]:
    """The versions of Python and of these packages; ``unknown`` of one that runs from a folder, not installed."""
    return {"python": platform.python_version(), **{package: _find_version(package) for package in PACKAGES}}


def _find_version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
