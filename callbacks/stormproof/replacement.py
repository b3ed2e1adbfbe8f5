"""Methods of one object that are replaced for a while."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any


class Replacement:
    """Is called instead of a method of one object. A deep copy of the object has the method itself.

    So a trainer or a module that is copied during training is as if nothing had been added to it.

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
    """Has ``call`` called instead of the method ``name`` of ``owner``, and returns what ends that.

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
    """Has ``function`` called with the arguments of the method ``name`` of ``owner`` before each call of it.

    The function that was added last is called first, unless it is to be the ``last`` before the method.

    Returns:
        Function that ends that.
    """
    extension = _extension(owner, name)
    extension.before.insert(len(extension.before) if last else 0, function)
    return functools.partial(_remove, owner, name, extension, extension.before, function)


def call_after(owner: object, name: str, function: Callable[..., None]) -> Callable[[], None]:
    """Has ``function`` called after each call of the method ``name`` of ``owner``, with its result and its arguments.

    Returns:
        Function that ends that.
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
    """Sets the attribute back, unless somebody else has replaced it since; ``own`` is the one of the object alone."""
    if vars(owner).get(name) is not replacement:
        return
    if own is None:
        object.__delattr__(owner, name)
    else:
        object.__setattr__(owner, name, own)
