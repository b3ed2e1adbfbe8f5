"""Temporary replacement of methods of one object."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any


class Replacement:
    """Replaces a method of one object. A deep copy of the object has its original method.

    Args:
        method: Bound method that is replaced.
        call: Called instead.
    """

    def __init__(self, method: Callable[..., Any], call: Callable[..., Any]) -> None:
        functools.update_wrapper(self, method, updated=())
        self._method, self._call = method, call

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the replacement."""
        return self._call(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """Returns the method of the copied object."""
        return copy.deepcopy(self._method, memo)


class _Extension(Replacement):
    """Calls functions before or after the method."""

    def __init__(self, method: Callable[..., Any], own: Callable[..., Any] | None) -> None:
        super().__init__(method, self._all)
        self.own = own
        self.before: list[Callable[..., None]] = []
        self.after: list[Callable[..., None]] = []

    def _all(self, *args: Any, **kwargs: Any) -> Any:
        for function in tuple(self.before):
            function(*args, **kwargs)
        result = self._method(*args, **kwargs)
        for function in tuple(self.after):
            function(result, *args, **kwargs)
        return result


def replace(owner: object, name: str, call: Callable[..., Any]) -> Callable[[], None]:
    """Replaces the method ``name`` of ``owner`` by ``call``.

    Returns:
        Function that restores the method.

    Example:
        >>> class Dog:
        ...     def speak(self):
        ...         return "woof"
        >>> dog = Dog()
        >>> stop = replace(dog, "speak", lambda: "meow")
        >>> dog.speak(), copy.deepcopy(dog).speak()
        ('meow', 'woof')
        >>> stop()
        >>> dog.speak()
        'woof'
    """
    own, replacement = vars(owner).get(name), Replacement(getattr(owner, name), call)
    object.__setattr__(owner, name, replacement)
    return functools.partial(_restore, owner, name, replacement, own)


def call_before(owner: object, name: str, function: Callable[..., None], *, last: bool = False) -> Callable[[], None]:
    """Calls ``function`` before each call of the method ``name`` of ``owner``, with the same arguments.

    Functions run in reverse order of registration; ``last`` runs right before the method.

    Returns:
        Function that undoes this.
    """
    extension = _extension(owner, name)
    extension.before.insert(len(extension.before) if last else 0, function)
    return functools.partial(_remove, owner, name, extension, extension.before, function)


def call_after(owner: object, name: str, function: Callable[..., None]) -> Callable[[], None]:
    """Calls ``function`` after each call of the method ``name`` of ``owner``, with its result and its arguments.

    Returns:
        Function that undoes this.
    """
    extension = _extension(owner, name)
    extension.after.append(function)
    return functools.partial(_remove, owner, name, extension, extension.after, function)


def _extension(owner: object, name: str) -> _Extension:
    method = getattr(owner, name)
    if not isinstance(method, _Extension):
        method = _Extension(method, vars(owner).get(name))
        object.__setattr__(owner, name, method)
    return method


def _remove(
    owner: object, name: str, extension: _Extension, functions: list[Callable[..., None]], function: Callable[..., None]
) -> None:
    functions.remove(function)
    if not (extension.before or extension.after):
        _restore(owner, name, extension, extension.own)


def _restore(owner: object, name: str, replacement: Replacement, own: Callable[..., Any] | None) -> None:
    """Restores the attribute unless it was replaced again. ``own`` is the instance attribute or None."""
    if vars(owner).get(name) is not replacement:
        return
    if own is None:
        object.__delattr__(owner, name)
    else:
        object.__setattr__(owner, name, own)
