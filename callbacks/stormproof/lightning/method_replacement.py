"""Temporary replacement of methods of one object, and where a method is defined."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

_PACKAGES = ("stormproof.", "pytorch_lightning.", "lightning_fabric.", "lightning.")


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


class _HookedMethod(Replacement):
    """Calls functions before or after the method."""

    def __init__(self, method: Callable[..., Any], instance_attribute: Callable[..., Any] | None) -> None:
        super().__init__(method, self._call_with_functions)
        self.instance_attribute = instance_attribute
        self.functions_before: list[Callable[..., None]] = []
        self.functions_after: list[Callable[..., None]] = []

    def _call_with_functions(self, *args: Any, **kwargs: Any) -> Any:
        for function in tuple(self.functions_before):
            function(*args, **kwargs)
        result = self._method(*args, **kwargs)
        for function in tuple(self.functions_after):
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
    instance_attribute, replacement = vars(owner).get(name), Replacement(getattr(owner, name), call)
    object.__setattr__(owner, name, replacement)
    return functools.partial(_restore_method, owner, name, replacement, instance_attribute)


def call_before(
    owner: object, name: str, function: Callable[..., None], *, run_last: bool = False
) -> Callable[[], None]:
    """Calls ``function`` before each call of the method ``name`` of ``owner``, with the same arguments.

    Functions run in reverse order of registration; ``run_last`` runs right before the method.

    Returns:
        Function that undoes this.
    """
    hooked_method = _hook_method(owner, name)
    hooked_method.functions_before.insert(len(hooked_method.functions_before) if run_last else 0, function)
    return functools.partial(_remove_function, owner, name, hooked_method, hooked_method.functions_before, function)


def call_after(owner: object, name: str, function: Callable[..., None]) -> Callable[[], None]:
    """Calls ``function`` after each call of the method ``name`` of ``owner``, with its result and its arguments.

    Returns:
        Function that undoes this.
    """
    hooked_method = _hook_method(owner, name)
    hooked_method.functions_after.append(function)
    return functools.partial(_remove_function, owner, name, hooked_method, hooked_method.functions_after, function)


def undo_together(*undo_functions: Callable[[], None]) -> Callable[[], None]:
    """Returns a function that calls ``undo_functions`` in reverse order."""

    def undo() -> None:
        for function in reversed(undo_functions):
            function()

    return undo


def _hook_method(owner: object, name: str) -> _HookedMethod:
    method = getattr(owner, name)
    if not isinstance(method, _HookedMethod):
        method = _HookedMethod(method, vars(owner).get(name))
        object.__setattr__(owner, name, method)
    return method


def _remove_function(
    owner: object,
    name: str,
    hooked_method: _HookedMethod,
    functions: list[Callable[..., None]],
    function: Callable[..., None],
) -> None:
    functions.remove(function)
    if not (hooked_method.functions_before or hooked_method.functions_after):
        _restore_method(owner, name, hooked_method, hooked_method.instance_attribute)


def _restore_method(
    owner: object, name: str, replacement: Replacement, instance_attribute: Callable[..., Any] | None
) -> None:
    """Restores the attribute unless it was replaced again. ``instance_attribute`` is the instance attribute or None."""
    if vars(owner).get(name) is not replacement:
        return
    if instance_attribute is None:
        object.__delattr__(owner, name)
    else:
        object.__setattr__(owner, name, instance_attribute)


def is_from_user(owner: object, name: str) -> bool:
    """Returns whether the method ``name`` of ``owner`` is defined outside Stormproof and Lightning."""
    if name in vars(owner) and not isinstance(vars(owner)[name], Replacement):
        return True
    # not the module of the function, because functools.wraps copies that from another function
    defining_class = next((cls for cls in type(owner).__mro__ if name in vars(cls)), object)
    return not defining_class.__module__.startswith(_PACKAGES)
