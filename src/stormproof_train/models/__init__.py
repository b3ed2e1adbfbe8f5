"""Networks. All accept ``input_shape``, ``num_outputs`` and an activation factory, plus their own arguments."""

from stormproof_train.models.cnn import CNN
from stormproof_train.models.mlp import MLP
from stormproof_train.models.resnet import ResNet
from stormproof_train.models.torchvision_model import TorchvisionModel
from stormproof_train.models.transformer import Transformer

__all__ = ["CNN", "MLP", "ResNet", "TorchvisionModel", "Transformer"]
