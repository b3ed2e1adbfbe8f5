"""Other activations for a network that is built already."""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping

from torch import nn
from torch.nn.modules import activation as torchs
from torchvision.ops import SqueezeExcitation

from stormproof_train.activations.factory import Activation, Elementwise
from stormproof_train.activations.features import infer_output_features
from stormproof_train.activations.maxout import Maxout
from stormproof_train.errors import UserError

_EXCLUDED_TYPES = (nn.MultiheadAttention, nn.Softmax, nn.Softmax2d, nn.Softmin, nn.LogSoftmax)
"""They stand among torch's activations, and are attention, or make probabilities of outputs."""

_PROBE_WIDTH = 720_720
"""Can be divided by each number up to 16: by the pieces of a Maxout."""


def swap_activations(network: nn.Module, activation: Activation) -> int:
    """Puts a new activation in the place of each one that a network has, and says how many they were.

    Replaced are modules: torch's activations but softmax and its kin, and this package's. A module that stands in
    several places is replaced by one that stands in all of them. The gate of torchvision's squeeze-and-excitation, made
    to lie between 0 and 1, stays. What a ``forward`` applies as a function, like ``F.relu``, cannot be seen and stays;
    so does the network itself, should it be an activation. A new one is in training or evaluation like the one it
    replaces, and its parameters are on the device, and of the type, of those before it.

    Args:
        network: changed in place.
        activation: called once for each module that is replaced.

    Returns:
        The number of modules replaced, at least 1.

    Raises:
        UserError: if there is none, or the activation gives another number of features than one that it would replace,
            for which the layers behind it are not made. The network then is as it was.

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
            f"activation: {type(network).__name__} has no module that is an activation; what its forward applies as a "
            "function cannot be replaced"
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
            layer.activation_relu_or_gelu = 0  # in evaluation it would compute the one that it was built with
    return len(replacements)


def _check_width(network: nn.Module, activation: Activation, replaced_modules: Mapping[str, nn.Module]) -> None:
    """The layers behind an activation are made for as many features as it gives; of None nothing is known."""
    new_features = infer_output_features(activation, _PROBE_WIDTH)
    for name, module in replaced_modules.items():
        current_features = infer_output_features(functools.partial(copy.deepcopy, module), _PROBE_WIDTH)
        expected_features = _PROBE_WIDTH if current_features is None else current_features
        if new_features not in {None, expected_features}:
            raise UserError(
                f"activation: it gives {new_features} features for {_PROBE_WIDTH}, and the layers of "
                f"{type(network).__name__} "
                f"are made for {expected_features}, as {name} ({type(module).__name__}) gives them: choose one that "
                f"gives as many"
            )


def _find_reference_parameters(network: nn.Module) -> dict[nn.Module, nn.Parameter]:
    """For each module the parameter that stands last before it, or else the network's first: what it works with."""
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
