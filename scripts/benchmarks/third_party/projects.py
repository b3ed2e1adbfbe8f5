"""Lists the projects, with the trainer options that they share and the rules for whether a run learned.

A project is a function that takes the seed and callbacks, and trains. It may return measurements of its progress. If it
returns None, the training losses are used. The modules import packages that not all environments have, so they are only
imported when their projects run.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

TRAINER: dict[str, Any] = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


def loss_fell(first: float, last: float) -> bool:
    return first - last > 0.02 * abs(first)


def contrastive_loss_fell(first: float, last: float) -> bool:
    """Returns whether the loss is also less than that of constant features, for 32 images with two views."""
    return loss_fell(first, last) and last < math.log(63)


def score_rose(first: float, last: float) -> bool:
    return last > 1.5 * first


RULES: dict[str, Callable[[float, float], bool]] = {
    "lightly_simclr": contrastive_loss_fell,
    "lightly_simclr_mild": contrastive_loss_fell,
    "lightly_simclr_medium": contrastive_loss_fell,
    "dqn": score_rose,
}
"""Rules of projects for which ``loss_fell`` is not enough."""


@dataclass(frozen=True)
class Project:
    """A project.

    Attributes:
        name: Name of the function.
        module: Name of the module of the function.
        learned: Returns whether a run learned, given the means of its first and last losses or measurements.
    """

    name: str
    module: str
    learned: Callable[[float, float], bool]


PROJECTS = [
    Project(name, module, RULES.get(name, loss_fell))
    for module, names in {
        "lightning_demos": "lightning_transformer lightning_boring",
        "scvi_tools": "scvi_scvi scvi_scanvi",
        "gluonts_models": "gluonts_deepar gluonts_feedforward",
        "lightly_methods": "lightly_simsiam lightly_byol lightly_moco lightly_simclr lightly_simclr_mild "
        "lightly_simclr_medium lightly_dcl lightly_vicreg lightly_barlow lightly_nnclr lightly_tico",
        "chemprop_models": "chemprop_regression chemprop_classification",
        "forecasting": "pytorch_forecasting_nbeats pytorch_forecasting_deepar pytorch_forecasting_tft",
        "darts_models": "darts_nbeats darts_tcn darts_transformer",
        "neuralforecast_models": "neuralforecast_nhits neuralforecast_tsmixer neuralforecast_patchtst",
        "tabular_models": "tabular_mlp tabular_ft_transformer tabular_gandalf",
        "hydra_template": "hydra_template_mnist",
        "own_networks": "frozen_backbone char_gpt vae simclr",
        "manual_optimization": "dcgan dqn",
    }.items()
    for name in names.split()
]
