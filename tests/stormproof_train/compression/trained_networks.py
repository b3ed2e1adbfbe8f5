"""Networks that have learnt something, within a second or two."""

import functools
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from torch import nn

from stormproof_train.compression.deployment.deployed_model import DeployedModel
from stormproof_train.data.digits import Digits
from stormproof_train.models import CNN, MLP, ResNet, Transformer
from stormproof_train.predict.artifact_metadata import ArtifactMetadata

DIGITS = ArtifactMetadata("probabilities", [], [1, 8, 8], "small_mouse", "digit")
MODELS: dict[str, Any] = {
    "mlp": lambda activation: MLP((1, 8, 8), 10, activation, width=32, norm="batch"),
    "cnn": lambda activation: CNN((1, 8, 8), 10, activation, width=8, depth=2, norm="batch"),
    "resnet": lambda activation: ResNet((1, 8, 8), 10, activation, width=8),
    "transformer": lambda activation: Transformer((1, 8, 8), 10, activation, width=32, depth=1, patch_size=2),
}


@functools.cache
def load_digits() -> dict[str, NDArray[Any]]:
    """Arrays of the training and the test split."""
    data = Digits()
    data.load_spec()
    data.setup("test")
    names = ("train", "train_labels", "test", "test_labels")
    return dict(zip(names, (tensor.numpy() for tensor in (*data._train, *data._test)), strict=True))


@functools.cache
def train_on_digits(model: str) -> DeployedModel:
    """Knows most digits."""
    inputs, labels = (torch.from_numpy(load_digits()[name]) for name in ("train", "train_labels"))
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = MODELS[model](nn.ReLU)
        optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
        for _ in range(5):
            for rows in torch.randperm(len(inputs), generator=generator).split(64):
                optimizer.zero_grad()
                F.cross_entropy(network(inputs[rows]), labels[rows]).backward()
                optimizer.step()
    return DeployedModel(network.eval(), "probabilities")
