"""Decides which values of variables are compared, and describes them."""

from __future__ import annotations

import collections
import enum
import os
from contextlib import suppress
from typing import Any

import torch

from stormproof.user_objects import defines, is_a, to_builtin

MAX_TEXT = 200
"""Largest length of a text."""
MAX_ELEMENTS = 64
"""Largest number of elements of a container, tensor or array."""
MAX_LARGE_ELEMENTS = 1 << 16
"""Largest number of elements of a list, tensor or array that is hashed."""
_MAX_TENSORS = 16  # of a large value
_MAX_DEPTH = 3
_CONTAINERS = (dict, list, tuple, set, frozenset, collections.deque)


def is_small_value(value: Any, depth: int = 0) -> bool:
    """Returns whether a value is a number, a short text, a small tensor, or a small container of such values.

    Paths and tensors with gradients are not. The latter are results of the current step.

    Example:
        >>> is_small_value({"best": 0.5, "wait": [1, 2]}), is_small_value("runs/1"), is_small_value(print)
        (True, False, False)
    """
    value = to_builtin(value)
    if value is None or is_a(value, bool | int | float | complex | enum.Enum):
        return True
    if is_a(value, str):
        return len(value) < MAX_TEXT and os.sep not in value
    if is_a(value, torch.Tensor):
        return _is_data(value, MAX_ELEMENTS)
    if is_a(value, _CONTAINERS):
        items = (*value, *value.values()) if is_a(value, dict) else value
        return depth < _MAX_DEPTH and len(value) <= MAX_ELEMENTS and all(is_small_value(i, depth + 1) for i in items)
    return type(value).__module__ == "numpy" and getattr(value, "size", MAX_ELEMENTS + 1) <= MAX_ELEMENTS


def is_large_value(value: Any) -> bool:
    """Returns whether a value is a list of integers, a tensor, a numeric array, or a short list of tensors.

    Each has at most 65,536 elements. Values for which :func:`is_small_value` is true match, too. Typical large values
    are shuffled sample orders, hidden states and batches.

    Example:
        >>> is_large_value(list(range(1000))), is_large_value((torch.ones(10, 10),)), is_large_value([0.5] * 1000)
        (True, True, False)
    """
    value = to_builtin(value)
    if is_a(value, torch.Tensor):
        return _is_data(value, MAX_LARGE_ELEMENTS)
    if is_a(value, list | tuple | collections.deque):
        if len(value) > MAX_LARGE_ELEMENTS:
            return False
        return {int}.issuperset(map(type, value)) or (
            len(value) <= _MAX_TENSORS
            and all(is_a(item, torch.Tensor) and _is_data(item, MAX_LARGE_ELEMENTS) for item in value)
        )
    with suppress(Exception):  # code of the user
        return defines(value, "dtype") and value.dtype.kind in "biuf" and value.size <= MAX_LARGE_ELEMENTS
    return False


def _is_data(tensor: torch.Tensor, max_elements: int) -> bool:
    return (
        not tensor.requires_grad
        and tensor.device.type != "meta"
        and tensor.layout is torch.strided
        and tensor.numel() <= max_elements
    )


def is_skipped_name(name: str, value: Any) -> bool:
    """Returns whether a variable contains a time: a float whose name has ``time`` or ``start``."""
    lower = name.lower()
    return isinstance(value, float) and ("time" in lower or "start" in lower)


def describe_value(value: Any) -> str:
    """Returns a text of at most 60 characters.

    Example:
        >>> describe_value(torch.arange(2)), describe_value("a" * 99)[-3:]
        ('[0, 1]', 'aa…')
    """
    value = to_builtin(value)
    if defines(value, "tolist"):
        value = value.tolist()
    text = type(value).__qualname__
    with suppress(Exception):  # code of the user
        text = repr(value)
    return text if len(text) <= 60 else f"{text[:59]}…"
