"""Names of layers, without wrappers."""

from __future__ import annotations

from collections.abc import Iterable

import torch

_WRAPPERS = frozenset({"_orig_mod", "_checkpoint_wrapped_module"})
"""What ``torch.compile`` and torch's checkpoint wrapper put between a module and its name."""
_MAX_NAMES = 3
"""Number of names that :func:`join_names` lists."""


def plain_name(name: str) -> str:
    """The name that a module or parameter would have without wrappers.

    Example:
        >>> plain_name("network._orig_mod.2.weight")
        'network.2.weight'
    """
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def layer_of(parameter: str) -> str:
    """The layer that owns a parameter; one that the root owns stands for itself.

    Example:
        >>> layer_of("network._orig_mod.2.weight"), layer_of("class_token")
        ('network.2', 'class_token')
    """
    owner, _, own = plain_name(parameter).rpartition(".")
    return owner or own


def layers_of(module: torch.nn.Module, parameters: Iterable[torch.Tensor]) -> list[str]:
    """The layer of each of ``parameters``; a parameter that two layers share is the first one's.

    What ``module`` does not name, as an optimizer may hold, is called ``unnamed``.
    """
    owners: dict[torch.Tensor, str] = {parameter: layer_of(name) for name, parameter in module.named_parameters()}
    return [owners.get(parameter, "unnamed") for parameter in parameters]


def join_names(names: Iterable[str]) -> str:
    """Joins the first three names with commas and counts the rest.

    Example:
        >>> join_names(["a", "b", "c", "d", "e"])
        'a, b, c and 2 more'
    """
    listed = list(names)
    more = len(listed) - _MAX_NAMES
    return ", ".join(listed[:_MAX_NAMES]) + (f" and {more} more" if more > 0 else "")
