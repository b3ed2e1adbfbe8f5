"""Names of layers, without wrappers."""

from __future__ import annotations

from collections.abc import Iterable

import torch

_WRAPPERS = frozenset({"_orig_mod", "_checkpoint_wrapped_module"})
"""Name components that ``torch.compile`` and torch's activation checkpointing insert."""
_MAX_NAMES = 3
"""Number of names that :func:`join_names` lists."""


def strip_wrappers(name: str) -> str:
    """Returns the name of a module or parameter without the components of wrappers.

    Example:
        >>> strip_wrappers("network._orig_mod.2.weight")
        'network.2.weight'
    """
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def get_layer_name(parameter: str) -> str:
    """Returns the name of the layer that owns a parameter, or the parameter's name if the root module owns it.

    Example:
        >>> get_layer_name("network._orig_mod.2.weight"), get_layer_name("class_token")
        ('network.2', 'class_token')
    """
    owner, _, parameter_name = strip_wrappers(parameter).rpartition(".")
    return owner or parameter_name


def get_layer_names(module: torch.nn.Module, parameters: Iterable[torch.Tensor]) -> list[str]:
    """Returns the layer name of each parameter. A shared parameter belongs to its first layer.

    Parameters that are not in ``module`` are called ``unnamed``. An optimizer may have such parameters.
    """
    layer_names: dict[torch.Tensor, str] = {
        parameter: get_layer_name(name) for name, parameter in module.named_parameters()
    }
    return [layer_names.get(parameter, "unnamed") for parameter in parameters]


def join_names(names: Iterable[str]) -> str:
    """Joins the first three names with commas and counts the rest.

    Example:
        >>> join_names(["a", "b", "c", "d", "e"])
        'a, b, c and 2 more'
    """
    name_list = list(names)
    num_omitted = len(name_list) - _MAX_NAMES
    return ", ".join(name_list[:_MAX_NAMES]) + (f" and {num_omitted} more" if num_omitted > 0 else "")
