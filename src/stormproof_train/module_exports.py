"""Finds the classes and functions that a package exports, one per module."""

from __future__ import annotations

import pkgutil
from collections.abc import Sequence
from importlib import import_module
from typing import Any


def module_exports(package: str, path: Sequence[str]) -> dict[str, Any]:
    """Imports the modules of a package and returns the class or function that each is named after.

    A name belongs to a module if it is defined there and equals the module's name without case and underscores.

    Returns:
        The exported classes and functions by name.

    Example:
        >>> import stormproof_train.losses as losses
        >>> module_exports(losses.__name__, losses.__path__)["LogCosh"]
        <class 'stormproof_train.losses.log_cosh.LogCosh'>
    """
    exports: dict[str, Any] = {}
    for module_info in pkgutil.iter_modules(path):
        module = import_module(f"{package}.{module_info.name}")
        exports |= {
            name: value
            for name, value in vars(module).items()
            if _normalize_name(name) == _normalize_name(module_info.name)
            and getattr(value, "__module__", None) == module.__name__
        }
    return exports


def _normalize_name(name: str) -> str:
    return name.replace("_", "").lower()
