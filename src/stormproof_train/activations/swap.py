"""Other activations for a network that is built already."""

from __future__ import annotations

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
    to lie between 0 and 1, stays. What a ``forward`` applies as a function, like
    ``F.relu``, cannot be seen and stays; so does the network itself, should it be an activation.

    Args:
        network: changed in place.
        activation: called once for each module that is replaced.

    Returns:
        The number of modules replaced, at least 1.

    Raises:
        UserError: if there is none, or the activation changes the number of features, for which the layers behind it
            are not made.

    Example:
        >>> network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> swap_activations(network, nn.ELU)
        2
        >>> network[1]
        ELU(alpha=1.0)
    """
    after = features_after(activation, _SOME_WIDTH)
    if after not in {None, _SOME_WIDTH}:
        raise UserError(
            f"activation: it gives {after} features for {_SOME_WIDTH}, and the layers of {type(network).__name__} are "
            "made for as many as they get now: choose one that keeps their number"
        )
    new: dict[nn.Module, nn.Module] = {}
    gates = {each.scale_activation for each in network.modules() if isinstance(each, SqueezeExcitation)}
    for name, module in list(network.named_modules(remove_duplicate=False)):
        if isinstance(module, nn.TransformerEncoderLayer):
            module.activation_relu_or_gelu = 0  # in evaluation it would compute the one that it was built with
        if name and _is_activation(module) and module not in gates:
            if module not in new:
                new[module] = activation()
            network.set_submodule(name, new[module])
    if not new:
        raise UserError(
            f"activation: {type(network).__name__} has no module that is an activation; what its forward applies as a "
            "function cannot be replaced"
        )
    return len(new)


def _is_activation(module: nn.Module) -> bool:
    return isinstance(module, Elementwise | Maxout) or (
        type(module).__module__ == torchs.__name__ and not isinstance(module, _NO_ACTIVATIONS)
    )
