"""Replaces the activations of an existing network."""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping

from torch import nn
from torch.nn.modules import activation as torchs
from torchvision.ops import SqueezeExcitation

from stormproof_train.activations.factory import Activation, Elementwise, infer_output_features
from stormproof_train.activations.maxout import Maxout
from stormproof_train.errors import UserError

_EXCLUDED_TYPES = (nn.MultiheadAttention, nn.Softmax, nn.Softmax2d, nn.Softmin, nn.LogSoftmax)
"""Activations of torch that are attention layers or convert outputs to probabilities."""

_PROBE_WIDTH = 720_720
"""Divisible by every number up to 16, and so by the pieces of a Maxout."""


def swap_activations(network: nn.Module, activation: Activation) -> int:
    """Replaces every activation module of a network in place.

    Activation modules are the activations of this package and of torch, except softmax and its variants. A module that
    is used in several places is replaced by one module that is used in the same places. The new module keeps the
    training mode, and its parameters keep the device and the floating-point type of the preceding layer.

    The following are kept:

    - The gates of torchvision's squeeze-and-excitation blocks, because their outputs must lie between 0 and 1.
    - Functions that a ``forward`` method calls, such as ``F.relu``, because they cannot be detected.
    - The network itself, even if it is an activation.

    Args:
        network: Network to change.
        activation: Factory, called once per replaced module.

    Returns:
        Number of replaced modules, at least 1.

    Raises:
        UserError: If the network has no activation module, or if the new activation changes the number of features that
            the following layers expect. The network is unchanged in both cases.

    Example:
        >>> network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> swap_activations(network, nn.ELU)
        2
        >>> network[1]
        ELU(alpha=1.0)
    """
    gates = {block.scale_activation for block in network.modules() if isinstance(block, SqueezeExcitation)}
    activations_by_name = [
        (name, module)
        for name, module in network.named_modules(remove_duplicate=False)
        if name and _is_activation(module) and module not in gates
    ]
    if not activations_by_name:
        raise UserError(
            f"activation: {type(network).__name__} has no activation module. Functions that its forward method calls "
            "cannot be replaced."
        )
    _check_width(network, activation, dict(activations_by_name))
    reference_parameters = _find_reference_parameters(network)
    replacements: dict[nn.Module, nn.Module] = {}
    for name, module in activations_by_name:
        if module not in replacements:
            reference = reference_parameters.get(module)
            replacement = activation().train(module.training)
            replacements[module] = (
                replacement if reference is None else replacement.to(device=reference.device, dtype=reference.dtype)
            )
        network.set_submodule(name, replacements[module])
    for layer in network.modules():
        if isinstance(layer, nn.TransformerEncoderLayer):
            layer.activation_relu_or_gelu = 0  # otherwise evaluation mode runs a fused ReLU or GELU
    return len(replacements)


def _check_width(network: nn.Module, activation: Activation, replaced_modules: Mapping[str, nn.Module]) -> None:
    """Checks that the activation keeps the number of features. Skips activations that reject the probe input."""
    new_features = infer_output_features(activation, _PROBE_WIDTH)
    for name, module in replaced_modules.items():
        current_features = infer_output_features(functools.partial(copy.deepcopy, module), _PROBE_WIDTH)
        expected_features = _PROBE_WIDTH if current_features is None else current_features
        if new_features not in {None, expected_features}:
            raise UserError(
                f"activation: returns {new_features} features for {_PROBE_WIDTH}, but {name} "
                f"({type(module).__name__}) of {type(network).__name__} returns {expected_features}. Choose an "
                "activation that returns the same number of features."
            )


def _find_reference_parameters(network: nn.Module) -> dict[nn.Module, nn.Parameter]:
    """Maps each module to the last parameter at or before it, or else to the first parameter of the network."""
    reference = next((parameter for parameter in network.parameters() if parameter.is_floating_point()), None)
    references = {}
    for module in network.modules():
        reference = next(
            (parameter for parameter in module.parameters(recurse=False) if parameter.is_floating_point()), reference
        )
        if reference is not None:
            references[module] = reference
    return references


def _is_activation(module: nn.Module) -> bool:
    return isinstance(module, Elementwise | Maxout) or (
        type(module).__module__ == torchs.__name__ and not isinstance(module, _EXCLUDED_TYPES)
    )
