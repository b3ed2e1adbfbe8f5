"""A fully connected network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from torch import nn

from stormproof_train.activations import Activation, infer_feature_counts
from stormproof_train.models.widths import hidden_widths


class MLP(nn.Sequential):
    """Stacks linear, norm, activation and dropout layers on the flattened input, followed by a linear output layer.

    Args:
        input_shape: Shape of one sample.
        num_outputs: Number of classes or regression outputs.
        activation: Factory, called once per hidden layer.
        width: Units of each hidden layer, after its activation.
        depth: Number of hidden layers. 0 gives a linear model.
        widths: Units of each hidden layer. Replaces ``width`` and ``depth``.
        norm: ``batch`` (Ioffe & Szegedy 2015), ``layer`` (Ba et al. 2016) or ``none``.
        dropout: Dropout probability of hidden units, in [0, 1).

    Raises:
        ValueError: If a width, the depth or the dropout probability is out of range.

    Example:
        >>> import torch
        >>> MLP((1, 8, 8), 10, nn.ReLU, widths=[32, 16])(torch.zeros(4, 1, 8, 8)).shape
        torch.Size([4, 10])

    References:
        Goodfellow, Bengio & Courville, Deep learning, 2016, chapter 6.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_outputs: int,
        activation: Activation,
        width: int = 128,
        depth: int = 2,
        widths: Sequence[int] | None = None,
        norm: Literal["none", "batch", "layer"] = "none",
        dropout: float = 0.0,
    ) -> None:
        features = math.prod(input_shape)
        layers: list[nn.Module] = [nn.Flatten()]
        for units in hidden_widths(width, depth, widths, dropout):
            linear_features, activation_features = infer_feature_counts(activation, units)
            layers.append(nn.Linear(features, linear_features))
            if norm != "none":
                layers.append(nn.BatchNorm1d(linear_features) if norm == "batch" else nn.LayerNorm(linear_features))
            layers.append(activation())
            if dropout > 0:
                layers.append(nn.Dropout(dropout))
            features = activation_features
        super().__init__(*layers, nn.Linear(features, num_outputs))
