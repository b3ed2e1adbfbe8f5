"""Checks the arguments of public functions by their annotations."""

from __future__ import annotations

import functools
import inspect
import operator
import os
from collections.abc import Callable, Collection, Iterable, Mapping
from numbers import Integral, Real
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

T = TypeVar("T", bound=Callable[..., Any])

_COMPARISONS = {"above": operator.gt, "at least": operator.ge, "below": operator.lt, "at most": operator.le}
_TYPE_NAMES = {
    int: "an int", float: "a number", bool: "True or False", str: "a string", Path: "a path", NoneType: "None",
    Callable: "a callable", Iterable: "a list", Collection: "a set or a list", Mapping: "a mapping",
}  # fmt: skip
_NUMBERS = {int: Integral, float: Real}
_INVALID = object()


def check_arguments(**ranges: str) -> Callable[[T], T]:
    """Makes a function check the types and ranges of its arguments, and convert numbers of NumPy and ``~`` in paths.

    The function can be a class. A bool is no number, a text is no collection, and NaN is in no range. Texts must not be
    empty unless this is the default. Items of collections are not checked.

    Args:
        ranges: Ranges of numbers by argument, such as ``"above 0 and at most 1"``.

    Example:
        >>> @check_arguments(steps="at least 1")
        ... def train(steps: int | None = None) -> None: ...
        >>> train(steps="50")
        Traceback (most recent call last):
        ...
        TypeError: `steps` must be an int of at least 1 or None, got '50' (str).
    """

    def decorate(function: T) -> T:
        if isinstance(function, type):
            setattr(function, "__init__", decorate(cast("T", function.__init__)))  # noqa: B010 (of a type variable)
            return cast("T", function)
        signature = inspect.signature(function)
        read_hints = functools.cache(lambda: get_type_hints(function))

        @functools.wraps(function)
        def checked(*args: Any, **kwargs: Any) -> Any:
            try:
                arguments = signature.bind(*args, **kwargs)
            except TypeError:
                return function(*args, **kwargs)  # raises an error with the name of the function
            for name, value in arguments.arguments.items():
                if name in read_hints() and value is not signature.parameters[name].default:
                    arguments.arguments[name] = _check(name, value, read_hints()[name], ranges.get(name))
            return function(*arguments.args, **arguments.kwargs)

        return cast("T", checked)

    return decorate


def _check(name: str, value: Any, hint: Any, valid_range: str | None) -> Any:
    """Returns the converted value of an argument."""
    hints = get_args(hint) if get_origin(hint) in {Union, UnionType} else (hint,)
    checked = next((result for option in hints if (result := _convert(value, option)) is not _INVALID), _INVALID)
    if checked is _INVALID:
        expected = " or ".join(_describe(option, valid_range) for option in hints)
        is_unknown_name = isinstance(value, str) and any(get_origin(option) is Literal for option in hints)
        error = ValueError if is_unknown_name else TypeError
        raise error(f"`{name}` must be {expected}, got {value!r:.100} ({type(value).__name__}).")
    if isinstance(checked, str) and not checked:
        raise ValueError(f"`{name}` must not be empty, got ''.")
    if isinstance(checked, str | Path) and Path in hints:
        return type(checked)(os.path.expanduser(checked))  # noqa: PTH111 (a Path would change a URL)
    if valid_range and isinstance(checked, int | float) and not _is_in_range(checked, valid_range):
        or_none = " or None" if NoneType in hints else ""
        raise ValueError(f"`{name}` must be {valid_range}{or_none}, got {value!r}.")
    return checked


def _convert(value: Any, hint: Any) -> Any:
    """Returns a value as an instance of the annotated type, or _INVALID."""
    kind = get_origin(hint) or hint
    if kind is Any:
        is_valid = True
    elif kind is Literal:
        is_valid = any(type(value) is type(option) and value == option for option in get_args(hint))
    elif kind in _NUMBERS:
        is_valid = isinstance(value, _NUMBERS[kind]) and not isinstance(value, bool)
        value = kind(value) if is_valid and not isinstance(value, int) else value
    elif kind is Path:
        is_valid = isinstance(value, os.PathLike)
        value = Path(value) if is_valid else value
    else:
        is_text_for_collection = isinstance(value, str | bytes) and get_args(hint)
        is_valid = isinstance(value, kind) and not is_text_for_collection
    return value if is_valid else _INVALID


def _is_in_range(value: float, valid_range: str) -> bool:
    limits = [limit.rpartition(" ") for limit in valid_range.split(" and ")]
    return all(_COMPARISONS[word](value, float(number)) for word, _, number in limits)


def _describe(hint: Any, valid_range: str | None) -> str:
    kind = get_origin(hint) or hint
    if kind is Literal:
        return " or ".join(map(repr, get_args(hint)))
    name = _TYPE_NAMES.get(kind, f"a {kind.__name__}")
    return f"{name} of {valid_range}" if valid_range and kind is int else name
