"""Layers with weights to initialize, and functions that draw their weights and biases."""

from __future__ import annotations

import math
from collections.abc import Iterator

from torch import nn

Layer = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d
"""Layers whose weights are initialized."""


def layers_with_weights(network: nn.Module) -> Iterator[tuple[Layer, nn.Parameter]]:
    """Yields layers with a trainable weight that is not computed from other parameters, as weight norm does."""
    for module in network.modules():
        if isinstance(module, Layer):
            weight = trainable_weight(module)
            if weight is not None:
                yield module, weight


def trainable_weight(layer: Layer) -> nn.Parameter | None:
    """Returns the weight of a layer, or None if it is frozen or computed from other parameters."""
    weight = dict(layer.named_parameters(recurse=False)).get("weight")
    return weight if weight is not None and weight.requires_grad else None


def fan_in(layer: Layer) -> int:
    """Returns the number of inputs per output: features, or channels per group times the kernel size."""
    return layer.weight[0].numel()


def fan_out(layer: Layer) -> int:
    """Returns the number of outputs per input: features, or channels per group times the kernel size."""
    groups = 1 if isinstance(layer, nn.Linear) else layer.groups
    return len(layer.weight) // groups * layer.weight[0, 0].numel()


def draw_normal(layer: Layer, weight_variance: float, bias_variance: float = 0.0) -> None:
    """Draws trainable weights with variance ``weight_variance`` / fan-in, and biases with ``bias_variance``."""
    weight = trainable_weight(layer)
    if weight is not None:
        nn.init.normal_(weight, std=math.sqrt(weight_variance / fan_in(layer)))
        draw_bias(layer, bias_variance)


def draw_bias(layer: Layer, variance: float = 0.0) -> None:
    """Draws trainable biases with mean 0, or sets them to 0 if ``variance`` is 0."""
    if layer.bias is None or not layer.bias.requires_grad:
        return
    if variance:
        nn.init.normal_(layer.bias, std=math.sqrt(variance))
    else:
        nn.init.zeros_(layer.bias)
