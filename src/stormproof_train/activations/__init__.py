"""Activations that torch lacks, and factories for activations.

Features are dimension 1, as in ``(batch, features)`` and ``(batch, features, positions …)``. A model whose tensors are
``(batch, positions, features)`` reshapes them before it calls an activation.

A class or function is exported if its module has the same name: ``Maxout`` in ``maxout.py``. Type checkers read the
stub ``__init__.pyi``, which ``scripts/generate.py`` writes.
"""

from stormproof_train.activations.factory import Activation, Elementwise, activation_factory, infer_feature_counts
from stormproof_train.activations.gated import bilinear, geglu, reglu, swiglu
from stormproof_train.activations.rectified import crelu, squared_relu
from stormproof_train.activations.swap import swap_activations
from stormproof_train.module_exports import module_exports

ACTIVATIONS = module_exports(__name__, __path__)
"""Activations with a module of their own, by name."""
globals().update(ACTIVATIONS)

__all__ = [  # noqa: PLE0604 # pyright: ignore[reportUnsupportedDunderAll] (checkers read the stub)
    "Activation",
    "Elementwise",
    "activation_factory",
    "bilinear",
    "crelu",
    "infer_feature_counts",
    "geglu",
    "reglu",
    "squared_relu",
    "swap_activations",
    "swiglu",
    *sorted(ACTIVATIONS),
]
