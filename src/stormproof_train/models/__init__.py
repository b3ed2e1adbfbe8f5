"""Networks: each takes ``input_shape``, ``num_outputs``, an activation factory, and its own arguments."""

from stormproof_train.models.cnn import CNN
from stormproof_train.models.mlp import MLP

__all__ = ["CNN", "MLP"]
