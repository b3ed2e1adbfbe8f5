"""What a checkpoint would refuse to load again."""

from __future__ import annotations

import io
import pickle
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from stormproof.errors import NotResumableError


def refused(checkpoint: Any, where: str = "") -> list[str]:
    """Names what ``torch.load(weights_only=True)``, the only way Lightning resumes by default, would not take.

    Tensors are left out: what matters is the type of everything else, and a type can be tried without a file.

    Args:
        checkpoint: what is to be saved.
        where: the name of ``checkpoint`` itself.

    Returns:
        One ``<key>/<key>: <type>`` for each value of a type that is refused.

    Example:
        >>> from fractions import Fraction
        >>> refused({"step": 1, "hyper_parameters": {"width": 8, "model": Fraction(1, 2)}})
        ['hyper_parameters/model: fractions.Fraction']
    """
    if _loads(_without_tensors(checkpoint)):
        return []
    inside = [found for key, value in _children(checkpoint) for found in refused(value, f"{where}/{key}".lstrip("/"))]
    kind = type(checkpoint)
    return inside or [f"{where}: {kind.__module__}.{kind.__qualname__}"]


def refuse_unloadable(checkpoint: Any) -> None:
    """Raises NotResumableError if ``checkpoint``, the first of a run, would not load again: now and not when needed."""
    found = refused(checkpoint)
    if found:
        raise NotResumableError(
            f"a checkpoint of this run would not load again, because of {'; '.join(found[:3])}: a state may hold "
            "tensors and plain values only (torch.serialization.add_safe_globals allows a type of your own)"
        )


def _children(value: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(value, Mapping):
        yield from value.items()
    elif isinstance(value, list | tuple):
        yield from enumerate(value)


def _without_tensors(value: Any) -> Any:
    if type(value) is torch.Tensor or isinstance(value, torch.nn.Parameter):
        return None
    if type(value) in {dict, OrderedDict}:  # a state_dict is the latter
        return {key: _without_tensors(item) for key, item in value.items()}
    if type(value) in {list, tuple}:
        return type(value)(_without_tensors(item) for item in value)
    return value


def _loads(value: Any) -> bool:
    buffer = io.BytesIO()
    try:
        torch.save(value, buffer)
        buffer.seek(0)
        torch.load(buffer, weights_only=True)
    except (pickle.PicklingError, pickle.UnpicklingError, AttributeError, TypeError):
        return False
    return True
