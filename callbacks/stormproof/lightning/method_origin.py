"""Finds out who has defined a method."""

from __future__ import annotations

from stormproof.lightning.method_replacement import Replacement

_PACKAGES = ("stormproof.", "pytorch_lightning.", "lightning_fabric.", "lightning.")


def is_from_user(owner: object, name: str) -> bool:
    """Returns whether the method ``name`` of ``owner`` is defined outside Stormproof and Lightning."""
    if name in vars(owner) and not isinstance(vars(owner)[name], Replacement):
        return True
    # not the module of the function, because functools.wraps copies that from another function
    defining_class = next((cls for cls in type(owner).__mro__ if name in vars(cls)), object)
    return not defining_class.__module__.startswith(_PACKAGES)
