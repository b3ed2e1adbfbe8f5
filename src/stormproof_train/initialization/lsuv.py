"""Layer-sequential unit-variance initialization on real data."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from stormproof_train.errors import UserError
from stormproof_train.initialization.layers import layers_with_weights
from stormproof_train.initialization.orthogonal import orthogonal
from stormproof_train.models.dry_run import dry_run


def lsuv(network: nn.Module, inputs: torch.Tensor) -> None:
    r"""Draws orthogonal weights and divides the weights of each layer by the standard deviation of its outputs.

    .. math:: W_l \leftarrow W_l / \operatorname{std}(W_l h_{l-1})

    The standard deviation is over all outputs of the layer for a batch of real inputs. Layers are scaled in the order
    of the forward pass. Biases are 0, so one division is exact, where the paper iterates. The method works with any
    activation, norm layer and sum.

    Args:
        network: Maps ``inputs`` to a tensor. Frozen weights, and weights computed from other parameters, are kept.
        inputs: A batch of the training data, ``(batch, …)``.

    Raises:
        UserError: If an input is not finite, or the outputs of a layer are constant or not finite.

    Example:
        >>> network = nn.Sequential(nn.Linear(6, 50), nn.Sigmoid(), nn.Linear(50, 50), nn.Sigmoid(), nn.Linear(50, 3))
        >>> inputs = torch.rand(64, 6)
        >>> lsuv(network, inputs)
        >>> [round(network[: depth + 1](inputs).var().item(), 3) for depth in (0, 2, 4)]
        [1.0, 1.0, 1.0]

    References:
        Mishkin & Matas, All you need is a good init, 2016, algorithm 1.
    """
    if not inputs.isfinite().all():
        raise UserError(
            "initialization: lsuv scales weights by the first training batch, which contains inputs that are not "
            "finite. Correct the data."
        )
    orthogonal(network, None, inputs.shape[1:])
    names = {module: name for name, module in network.named_modules()}
    unscaled_weights: dict[nn.Module, nn.Parameter] = dict(layers_with_weights(network))

    def scale(layer: nn.Module, _: Any, output: torch.Tensor) -> torch.Tensor | None:
        weight = unscaled_weights.pop(layer, None)
        if weight is None:
            return None
        deviation = output.std()
        if not 0 < deviation < torch.inf:
            layer_name = names[layer] or type(layer).__name__
            raise UserError(
                f"initialization: lsuv divides by the standard deviation of the outputs of {layer_name} on the first "
                f"batch, which is {deviation.item():.3g}. Choose another activation, or initialization=auto."
            )
        weight.div_(deviation)
        return output / deviation

    with ExitStack() as hooks, dry_run(network), torch.no_grad():
        for layer in unscaled_weights:
            hooks.enter_context(layer.register_forward_hook(scale))
        network(inputs)
