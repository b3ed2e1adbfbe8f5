"""Finds live objects of a class without keeping them alive."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class WeakRegistry(Generic[T]):
    """Live objects in order of creation, by identity. The objects may be unhashable.

    Attributes:
        added: Number of objects that were ever added.
    """

    def __init__(self) -> None:
        self.added = 0
        self._references: dict[int, weakref.ref[T]] = {}

    def add(self, value: T) -> None:
        """Adds an object. An object that is added twice counts once."""
        key = id(value)
        if key not in self._references:
            self.added += 1
            self._references[key] = weakref.ref(value, lambda _: self._references.pop(key, None))

    def __iter__(self) -> Iterator[T]:
        for reference in list(self._references.values()):
            value = reference()
            if value is not None:
                yield value

    def list_new(self, since: int) -> list[T]:
        """Returns those live objects that were added after :attr:`added` was ``since``, at most."""
        count = self.added - since
        references = list(self._references.values())[-count:] if count > 0 else []
        return [value for reference in references if (value := reference()) is not None]

    def watch(self, owner: Any, *methods: str) -> None:
        """Adds the instance after each call of the methods of a class, such as ``__init__``."""
        for name in methods:
            original = getattr(owner, name)
            setattr(owner, name, self._wrap(original))

    def _wrap(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def wrapper(self_: Any, *args: Any, **kwargs: Any) -> Any:
            result = original(self_, *args, **kwargs)
            self.add(self_)
            return result

        return wrapper
