"""Bitwise comparison of nested results."""

from __future__ import annotations

from typing import Any

import torch


def find_differences(first: Any, second: Any, path: str = "") -> list[str]:
    """Returns the paths at which two nested values differ. NaN equals NaN.

    Example:
        >>> find_differences({"weights": [torch.ones(2), 3.0]}, {"weights": [torch.ones(2), 4.0]})
        ['/weights/1: 3.0, 4.0']
    """
    if type(first) is not type(second):
        return [f"{path}: {type(first).__name__}, {type(second).__name__}"]
    if isinstance(first, torch.Tensor):
        return [] if _is_bitwise_equal(first, second) else [f"{path}: {first.tolist()}, {second.tolist()}"]
    if isinstance(first, list | tuple):
        return find_differences(dict(enumerate(first)), dict(enumerate(second)), path)
    if isinstance(first, dict):
        missing = first.keys() ^ second.keys()
        key_differences = [f"{path}: only one has {sorted(map(str, missing))}"] if missing else []
        common_keys = [key for key in first if key in second]
        return key_differences + [
            difference
            for key in common_keys
            for difference in find_differences(first[key], second[key], f"{path}/{key}")
        ]
    return [] if first == second or (first != first and second != second) else [f"{path}: {first}, {second}"]  # noqa: PLR0124


def _is_bitwise_equal(first: torch.Tensor, second: torch.Tensor) -> bool:
    if first.dtype != second.dtype or first.shape != second.shape:
        return False
    return torch.equal(*(tensor.contiguous().flatten().view(torch.uint8) for tensor in (first, second)))
