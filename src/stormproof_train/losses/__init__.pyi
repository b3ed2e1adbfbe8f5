from typing import Any

from stormproof_train.losses.asymmetric import Asymmetric
from stormproof_train.losses.bce import BCE
from stormproof_train.losses.brier import Brier
from stormproof_train.losses.cauchy import Cauchy
from stormproof_train.losses.class_balanced import ClassBalanced
from stormproof_train.losses.constant_prediction import best_constant
from stormproof_train.losses.contract import Loss, LossProperties, loss_properties
from stormproof_train.losses.cross_entropy import CrossEntropy
from stormproof_train.losses.fit import DEFAULT_LOSSES, check_fit, check_task
from stormproof_train.losses.focal import Focal
from stormproof_train.losses.gamma import Gamma
from stormproof_train.losses.gaussian_nll import GaussianNLL
from stormproof_train.losses.generalized_cross_entropy import GeneralizedCrossEntropy
from stormproof_train.losses.huber import Huber
from stormproof_train.losses.log_cosh import LogCosh
from stormproof_train.losses.logit_adjustment import LogitAdjustment
from stormproof_train.losses.mae import MAE
from stormproof_train.losses.mse import MSE
from stormproof_train.losses.multi_margin import MultiMargin
from stormproof_train.losses.pinball import Pinball
from stormproof_train.losses.poisson import Poisson
from stormproof_train.losses.poly1 import Poly1
from stormproof_train.losses.smooth_l1 import SmoothL1
from stormproof_train.losses.symmetric_cross_entropy import SymmetricCrossEntropy
from stormproof_train.losses.tweedie import Tweedie

LOSSES: dict[str, Any]

__all__ = [
    "BCE",
    "DEFAULT_LOSSES",
    "MAE",
    "MSE",
    "Asymmetric",
    "Brier",
    "Cauchy",
    "ClassBalanced",
    "CrossEntropy",
    "Focal",
    "Gamma",
    "GaussianNLL",
    "GeneralizedCrossEntropy",
    "Huber",
    "LogCosh",
    "LogitAdjustment",
    "Loss",
    "LossProperties",
    "MultiMargin",
    "Pinball",
    "Poisson",
    "Poly1",
    "SmoothL1",
    "SymmetricCrossEntropy",
    "Tweedie",
    "best_constant",
    "check_fit",
    "check_task",
    "loss_properties",
]
