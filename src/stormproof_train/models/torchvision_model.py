"""A network of torchvision's, with the chosen activation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torchvision import models

from stormproof_train.activations import Activation, swap_activations
from stormproof_train.errors import rank_by_similarity

RGB_CHANNELS = 3


class TorchvisionModel(nn.Module):
    """Any image classifier of torchvision, its activations replaced one by one; weights are drawn, not loaded.

    An image of one channel goes to all three of the network.

    Args:
        input_shape: (1 or 3, height, width) of one image; some networks need a size of their own.
        num_outputs: classes, or regression outputs.
        activation: called once for each activation that is replaced; it has to keep the number of features.
        name: one of ``torchvision.models.list_models(module=torchvision.models)``, which are its classifiers.

    Raises:
        ValueError: if there is no such classifier, or the input is no such image.
        UserError: if it has no activation that is a module.

    Example:
        >>> network = TorchvisionModel((1, 32, 32), 10, nn.ELU, name="resnet18")
        >>> network(torch.zeros(2, 1, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self, input_shape: Sequence[int], num_outputs: int, activation: Activation, name: str = "resnet18"
    ) -> None:
        super().__init__()
        if len(input_shape) != 3 or input_shape[0] not in {1, RGB_CHANNELS}:
            raise ValueError(f"{name} needs images of 1 or 3 channels, not samples of shape {tuple(input_shape)}")
        classifiers = models.list_models(module=models)
        if name not in classifiers:  # detectors and the like load weights of their own, and give no (N, outputs)
            suggestions = ", ".join(rank_by_similarity(name, classifiers)[:5])
            raise ValueError(f"torchvision has no classifier {name}; there is: {suggestions} …")
        self.model = models.get_model(name, weights=None, num_classes=num_outputs)
        swap_activations(self.model, activation)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Maps images (N, 1 or 3, height, width) to outputs (N, num_outputs)."""
        return self.model(images.expand(-1, RGB_CHANNELS, -1, -1))
