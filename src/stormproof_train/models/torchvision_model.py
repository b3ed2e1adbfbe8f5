"""Wraps torchvision classifiers and replaces their activations."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torchvision import models

from stormproof_train.activations import Activation, swap_activations
from stormproof_train.errors import rank_by_similarity

RGB_CHANNELS = 3


class TorchvisionModel(nn.Module):
    """Builds a torchvision image classifier with random weights and replaces its activations.

    Images with one channel are repeated to three channels.

    Args:
        input_shape: Shape of one image, ``(1 or 3, height, width)``. Some networks require a certain size.
        num_outputs: Number of classes or regression outputs.
        activation: Factory, called once per replaced activation. It must keep the number of features.
        name: One of ``torchvision.models.list_models(module=torchvision.models)``.

    Raises:
        ValueError: If torchvision has no classifier of this name, or the input is not an image with 1 or 3 channels.
        UserError: If the network has no activation module.

    Example:
        >>> network = TorchvisionModel((1, 32, 32), 10, nn.ELU, name="resnet18")
        >>> network(torch.zeros(2, 1, 32, 32)).shape
        torch.Size([2, 10])

    References:
        torchvision, Models and pre-trained weights, https://docs.pytorch.org/vision/stable/models.html.
    """

    def __init__(
        self, input_shape: Sequence[int], num_outputs: int, activation: Activation, name: str = "resnet18"
    ) -> None:
        super().__init__()
        if len(input_shape) != 3 or input_shape[0] not in {1, RGB_CHANNELS}:
            raise ValueError(f"{name} needs images with 1 or 3 channels, got samples of shape {tuple(input_shape)}.")
        classifiers = models.list_models(module=models)
        if name not in classifiers:  # detectors load pretrained weights and do not return (batch, outputs)
            suggestions = ", ".join(rank_by_similarity(name, classifiers)[:5])
            raise ValueError(f"torchvision has no classifier {name}. Similar names: {suggestions} …")
        self.model = models.get_model(name, weights=None, num_classes=num_outputs)
        swap_activations(self.model, activation)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Maps images ``(batch, 1 or 3, height, width)`` to outputs ``(batch, num_outputs)``."""
        return self.model(images.expand(-1, RGB_CHANNELS, -1, -1))
