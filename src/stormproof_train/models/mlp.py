"""A fully connected network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from torch import nn

from stormproof_train.activations import Activation, infer_feature_counts
from stormproof_train.models.widths import hidden_widths


class MLP(nn.Sequential):
    """Flattens its input, then repeats linear, norm, activation, dropout; a last linear layer gives the outputs.

    Args:
        input_shape: the shape of one sample.
        num_outputs: classes, or regression outputs.
        activation: called once for each hidden layer.
        width: units of each hidden layer, counted behind its activation.
        depth: number of hidden layers, 0 for a linear model.
        widths: units of each hidden layer in turn; replaces width and depth.
        norm: ``batch`` (Ioffe & Szegedy 2015), ``layer`` (Ba et al. 2016) or ``none``.
        dropout: probability that a hidden unit is dropped in training, in [0, 1).

    Raises:
        ValueError: if a width, the depth or dropout is out of its range.

    Example:
        >>> import torch
        >>> MLP((1, 8, 8), 10, nn.ReLU, widths=[32, 16])(torch.zeros(4, 1, 8, 8)).shape
        torch.Size([4, 10])
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
