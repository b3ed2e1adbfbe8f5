"""The layers whose weights are drawn, and how they are set."""

from __future__ import annotations

import math
from collections.abc import Iterator

from torch import nn

Layer = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d
"""The layers that have weights to be scaled."""


def layers_with_weights(network: nn.Module) -> Iterator[tuple[Layer, nn.Parameter]]:
    """Those whose weights are to be trained, and not computed from others as weight norm does, with them."""
    for module in network.modules():
        if isinstance(module, Layer):
            weight = trainable_weight(module)
            if weight is not None:
                yield module, weight


def trainable_weight(layer: Layer) -> nn.Parameter | None:
    """A layer's own trainable weight."""
    weight = dict(layer.named_parameters(recurse=False)).get("weight")
    return weight if weight is not None and weight.requires_grad else None


def fan_in(layer: Layer) -> int:
    """The inputs of one output: features, or channels of a group times the size of the kernel."""
    return layer.weight[0].numel()


def fan_out(layer: Layer) -> int:
    """The outputs that one input goes to: features, or channels of a group times the size of the kernel."""
    groups = 1 if isinstance(layer, nn.Linear) else layer.groups
    return len(layer.weight) // groups * layer.weight[0, 0].numel()


def draw_normal(layer: Layer, weight_variance: float, bias_variance: float = 0.0) -> None:
    """Draws a layer's weights with a variance of so much over the fan-in, and its biases; what is frozen stays."""
    weight = trainable_weight(layer)
    if weight is not None:
        nn.init.normal_(weight, std=math.sqrt(weight_variance / fan_in(layer)))
        draw_bias(layer, bias_variance)


def draw_bias(layer: Layer, variance: float = 0.0) -> None:
    """Draws a layer's biases with mean 0, or sets them to it; what is frozen stays."""
    if layer.bias is None or not layer.bias.requires_grad:
        return
    if variance:
        nn.init.normal_(layer.bias, std=math.sqrt(variance))
    else:
        nn.init.zeros_(layer.bias)
