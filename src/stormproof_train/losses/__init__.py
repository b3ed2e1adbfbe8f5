"""Loss functions, one per file. ``contract`` defines their interface.

A class is exported if its module has the same name: ``LogCosh`` in ``log_cosh.py``. Type checkers read the stub
``__init__.pyi``, which ``scripts/generate.py`` writes.
"""

from stormproof_train.losses.constant_prediction import best_constant
from stormproof_train.losses.contract import Loss, LossProperties, loss_properties
from stormproof_train.losses.fit import DEFAULT_LOSSES, check_fit, check_task
from stormproof_train.module_exports import module_exports

LOSSES = module_exports(__name__, __path__)
"""All loss classes by name."""
globals().update(LOSSES)

__all__ = [  # noqa: PLE0604 # pyright: ignore[reportUnsupportedDunderAll] (checkers read the stub)
    "DEFAULT_LOSSES",
    "LossProperties",
    "Loss",
    "best_constant",
    "check_fit",
    "check_task",
    "loss_properties",
    *sorted(LOSSES),
]
