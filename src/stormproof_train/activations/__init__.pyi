from typing import Any

from stormproof_train.activations.factory import Activation, Elementwise, activation_factory, infer_feature_counts
from stormproof_train.activations.gated import bilinear, geglu, reglu, swiglu
from stormproof_train.activations.maxout import Maxout
from stormproof_train.activations.rectified import crelu, squared_relu
from stormproof_train.activations.snake import snake
from stormproof_train.activations.swap import swap_activations

ACTIVATIONS: dict[str, Any]

__all__ = [
    "Activation",
    "Elementwise",
    "Maxout",
    "activation_factory",
    "bilinear",
    "crelu",
    "geglu",
    "infer_feature_counts",
    "reglu",
    "snake",
    "squared_relu",
    "swap_activations",
    "swiglu",
]
