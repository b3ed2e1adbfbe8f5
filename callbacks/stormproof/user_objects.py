"""Reads objects of the user without calling their code, which may raise, change the object, or answer every name."""

from __future__ import annotations

from collections import deque
from types import UnionType
from typing import Any

_CONTAINERS = (dict, list, tuple, set, frozenset, deque)
_NUMBERS_AND_TEXT = {int: int.__int__, float: float.__float__, complex: complex.__complex__, str: str.__str__}


def is_a(value: object, types: type | UnionType | tuple[type, ...]) -> bool:
    """Returns isinstance by the real type. Proxies and mocks may have another ``__class__``."""
    return issubclass(type(value), types)


def read_attributes(value: object) -> dict[str, Any]:
    """Returns the attributes that an object stores. Empty without ``__dict__``.

    Example:
        >>> from unittest.mock import Mock
        >>> hasattr(Mock(), "optimizer"), "optimizer" in read_attributes(Mock())
        (True, False)
    """
    try:
        attributes = object.__getattribute__(value, "__dict__")
    except Exception:  # noqa: BLE001 (a class has its own `__dict__`, or none)
        return {}
    return attributes if type(attributes) is dict else {}


def defines(value: object, name: str) -> bool:
    """Returns whether the class of an object defines an attribute."""
    return any(name in vars(parent) for parent in type(value).__mro__)


def to_builtin(value: Any) -> Any:
    """Converts an instance of a subclass of a builtin type to that type. Returns other values unchanged."""
    for base in _CONTAINERS:
        if issubclass(type(value), base):
            if type(value) is base:
                return value
            return dict(dict.items(value)) if base is dict else base(base.__iter__(value))
    for base, convert in _NUMBERS_AND_TEXT.items():
        if issubclass(type(value), base):
            return value if type(value) in {base, bool} else convert(value)
    return value
