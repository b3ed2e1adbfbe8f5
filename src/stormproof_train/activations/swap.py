"""Other activations for a network that is built already."""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping

from torch import nn
from torch.nn.modules import activation as torchs
from torchvision.ops import SqueezeExcitation

from stormproof_train.activations.factory import Activation, Elementwise
from stormproof_train.activations.features import features_after
from stormproof_train.activations.maxout import Maxout
from stormproof_train.errors import UserError

_NO_ACTIVATIONS = (nn.MultiheadAttention, nn.Softmax, nn.Softmax2d, nn.Softmin, nn.LogSoftmax)
"""They stand among torch's activations, and are attention, or make probabilities of outputs."""

_SOME_WIDTH = 720_720
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
    gates = {each.scale_activation for each in network.modules() if isinstance(each, SqueezeExcitation)}
    places = [
        (name, module)
        for name, module in network.named_modules(remove_duplicate=False)
        if name and _is_activation(module) and module not in gates
    ]
    if not places:
        raise UserError(
            f"activation: {type(network).__name__} has no module that is an activation; what its forward applies as a "
            "function cannot be replaced"
        )
    _refuse_another_width(network, activation, dict(places))
    beside = _parameters_beside(network)
    new: dict[nn.Module, nn.Module] = {}
    for name, module in places:
        if module not in new:
            like = beside.get(module)
            made = activation().train(module.training)
            new[module] = made if like is None else made.to(device=like.device, dtype=like.dtype)
        network.set_submodule(name, new[module])
    for layer in network.modules():
        if isinstance(layer, nn.TransformerEncoderLayer):
            layer.activation_relu_or_gelu = 0  # in evaluation it would compute the one that it was built with
    return len(new)


def _refuse_another_width(network: nn.Module, activation: Activation, replaced: Mapping[str, nn.Module]) -> None:
    """The layers behind an activation are made for as many features as it gives; of None nothing is known."""
    after = features_after(activation, _SOME_WIDTH)
    for name, module in replaced.items():
        before = features_after(functools.partial(copy.deepcopy, module), _SOME_WIDTH)
        wanted = _SOME_WIDTH if before is None else before
        if after not in {None, wanted}:
            raise UserError(
                f"activation: it gives {after} features for {_SOME_WIDTH}, and the layers of {type(network).__name__} "
                f"are made for {wanted}, as {name} ({type(module).__name__}) gives them: choose one that gives as many"
            )


def _parameters_beside(network: nn.Module) -> dict[nn.Module, nn.Parameter]:
    """For each module the parameter that stands last before it, or else the network's first: what it works with."""
    last = next((each for each in network.parameters() if each.is_floating_point()), None)
    beside = {}
    for module in network.modules():
        last = next((each for each in module.parameters(recurse=False) if each.is_floating_point()), last)
        if last is not None:
            beside[module] = last
    return beside


def _is_activation(module: nn.Module) -> bool:
    return isinstance(module, Elementwise | Maxout) or (
        type(module).__module__ == torchs.__name__ and not isinstance(module, _NO_ACTIVATIONS)
    )
