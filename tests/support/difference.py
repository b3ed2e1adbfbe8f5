"""Where two results differ, to the last bit."""

from __future__ import annotations

from typing import Any

import torch


def differences(one: Any, other: Any, where: str = "") -> list[str]:
    """Names every place at which two nested values are not the same; a NaN is the same as a NaN.

    Example:
        >>> differences({"weights": [torch.ones(2), 3.0]}, {"weights": [torch.ones(2), 4.0]})
        ['/weights/1: 3.0, 4.0']
    """
    if type(one) is not type(other):
        return [f"{where}: {type(one).__name__}, {type(other).__name__}"]
    if isinstance(one, torch.Tensor):
        return [] if _same_bits(one, other) else [f"{where}: {one.tolist()}, {other.tolist()}"]
    if isinstance(one, list | tuple):
        return differences(dict(enumerate(one)), dict(enumerate(other)), where)
    if isinstance(one, dict):
        missing = one.keys() ^ other.keys()
        only = [f"{where}: only one has {sorted(map(str, missing))}"] if missing else []
        both = [key for key in one if key in other]
        return only + [found for key in both for found in differences(one[key], other[key], f"{where}/{key}")]
    return [] if one == other or (one != one and other != other) else [f"{where}: {one}, {other}"]  # noqa: PLR0124


def _same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    return torch.equal(*(each.contiguous().flatten().view(torch.uint8) for each in (one, other)))
