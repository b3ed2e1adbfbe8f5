"""Tiny networks of each kind, with weights and statistics as a training could leave them."""

from collections.abc import Callable

import torch
from torch import nn

from stormproof_train.activations import (
    Activation,
    Maxout,
    activation_factory,
    bilinear,
    crelu,
    reglu,
    swiglu,
)
from stormproof_train.compression.structure.pruning import UnitPruner
from stormproof_train.models import CNN, MLP, ResNet, Transformer

INPUT_SHAPE = (1, 8, 8)


class MirrorGate(nn.Module):
    """Anyone's own: the first half gated by the second, from its end."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        values, gates = x.chunk(2, dim=1)
        return values * gates.flip(1).tanh()


ACTIVATIONS: dict[str, Activation] = {
    "relu": nn.ReLU,
    "elu": nn.ELU,
    "prelu": nn.PReLU,
    "crelu": activation_factory(lambda: crelu),
    "softmax": lambda: nn.Softmax(dim=1),
    "maxout": Maxout,
    "maxout_3": lambda: Maxout(3),
    "glu": lambda: nn.GLU(dim=1),
    "reglu": activation_factory(lambda: reglu),
    "swiglu": activation_factory(lambda: swiglu),
    "bilinear": activation_factory(lambda: bilinear),
    "own": MirrorGate,
}
MODELS: dict[str, Callable[[Activation], nn.Module]] = {
    "mlp": lambda activation: MLP(INPUT_SHAPE, 4, activation, widths=[8, 6]),
    "mlp_batch": lambda activation: MLP(INPUT_SHAPE, 4, activation, widths=[8, 6], norm="batch"),
    "mlp_layer": lambda activation: MLP(INPUT_SHAPE, 4, activation, widths=[8, 6], norm="layer"),
    "cnn": lambda activation: CNN(INPUT_SHAPE, 4, activation, widths=[8, 8]),
    "cnn_batch": lambda activation: CNN(INPUT_SHAPE, 4, activation, widths=[8, 8], norm="batch"),
    "cnn_group": lambda activation: CNN(INPUT_SHAPE, 4, activation, widths=[16, 16], norm="group"),
    "resnet_batch": lambda activation: ResNet(INPUT_SHAPE, 4, activation, widths=[8, 8]),
    "resnet_group": lambda activation: ResNet(INPUT_SHAPE, 4, activation, widths=[16], norm="group"),
    "transformer": lambda activation: Transformer(INPUT_SHAPE, 4, activation, width=8, depth=1, heads=2, patch_size=4),
}


def randomize_weights(network: nn.Module, seed: int = 0) -> nn.Module:
    """Draws all that training changes, so that no two channels have the same."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point():
            noise = torch.randn(tensor.shape, generator=generator)
            tensor.copy_(
                noise.abs() + 0.5 if name.endswith("running_var") else noise / max(1, tensor[0:1].numel()) ** 0.5
            )
    return network


def make_samples(count: int = 4, *shape: int) -> torch.Tensor:
    return torch.randn(count, *(shape or INPUT_SHAPE), generator=torch.Generator().manual_seed(1))


def prune(network: nn.Module, inputs: torch.Tensor, macs: int, block: int = 16) -> nn.Module:
    """A copy with at most so many multiply-accumulates."""
    return UnitPruner(network, inputs, block).prune_to(macs)
