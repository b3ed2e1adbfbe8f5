from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from stormproof_train import losses
from stormproof_train.data.spec import DataSpec
from stormproof_train.errors import UserError
from stormproof_train.losses import DEFAULT_LOSSES, check_fit, check_task
from stormproof_train.losses.contract import loss_properties
from tests.support.loss_references import CLASSIFICATION_LOSSES, build_loss

CLASSES = DataSpec((4,), num_classes=3, num_outputs=3)
NUMBERS = DataSpec((4,), num_classes=None, num_outputs=1)

FITS = {
    "cross-entropy": (nn.CrossEntropyLoss(label_smoothing=0.1), CLASSES),
    "cross-entropy with weights": (nn.CrossEntropyLoss(weight=torch.ones(3)), CLASSES),
    "multi-margin": (nn.MultiMarginLoss(), CLASSES),
    "cross-entropy as a function": (functional.cross_entropy, CLASSES),
    "squared error": (nn.MSELoss(), NUMBERS),
    "NLL behind a log-softmax": (nn.NLLLoss(), CLASSES),
    "summed squared error": (nn.MSELoss(reduction="sum"), NUMBERS),
    "Huber": (nn.HuberLoss(), NUMBERS),
    "absolute error as a function": (functional.l1_loss, NUMBERS),
    "counts": (losses.Poisson(), DataSpec((4,), None, 1, target_mean=2.0, target_min=0.0)),
    "amounts": (losses.Gamma(), DataSpec((4,), None, 1, target_mean=2.0, target_min=0.1)),
}


@pytest.mark.parametrize(("loss", "spec"), FITS.values(), ids=FITS.keys())
def test_a_loss_that_fits_is_let_through(loss: Callable[..., torch.Tensor], spec: DataSpec):
    network = nn.Linear(4, spec.num_outputs)
    check_fit(nn.Sequential(network, nn.LogSoftmax(dim=1)) if isinstance(loss, nn.NLLLoss) else network, loss, spec)


@pytest.mark.parametrize("word", CLASSIFICATION_LOSSES)
def test_a_loss_says_whether_the_softmax_is_its_probabilities(word: str):
    other_losses = {
        "bce",
        "multi_margin",
        "logit_adjustment",
    }  # sigmoids, distances, and logits that are shifted in training
    assert loss_properties(build_loss(word)).softmax == (word not in other_losses)


def test_of_strangers_only_torchs_cross_entropy_is_known():
    assert loss_properties(nn.CrossEntropyLoss()).softmax
    assert loss_properties(functional.cross_entropy).softmax
    assert not loss_properties(nn.MultiMarginLoss()).softmax
    assert not loss_properties(lambda outputs, target: outputs.sum()).softmax


class _FiveFeatures(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert x.shape[1] == 5, "five are needed"
        return x


def _half(inputs: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return inputs[:, :2], target


@pytest.mark.parametrize(
    ("augmentation", "told"),
    [
        (_half, r"augmentation: must keep the shape of its inputs, \(2, 4\), but returns \(2, 2\)"),
        (torch.mm, r"augmentation: does not accept batches of this data, \(2, 4\): "),
        (torch.Tensor.view_as, r"augmentation: does not accept batches of this data, \(2, 4\): "),
    ],
    ids=["another shape", "an error", "no pair"],
)
def test_an_augmentation_that_does_not_fit_is_one_sentence(augmentation: Callable[..., Any], told: str):
    with pytest.raises(UserError, match=told):
        check_fit(nn.Linear(4, 3), nn.CrossEntropyLoss(), CLASSES, augmentation)


class _Pair(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x, x


REFUSED = {
    "mse on classes": (
        nn.Linear(4, 3),
        nn.MSELoss(),
        CLASSES,
        "MSELoss is for regression, but this data is for classif",
    ),
    "l1 on classes": (nn.Linear(4, 3), nn.L1Loss(), CLASSES, "Omit loss= (stormproof_train.losses.CrossEnt"),
    "cross-entropy on a number": (
        nn.Linear(4, 1),
        nn.CrossEntropyLoss(),
        NUMBERS,
        "Omit loss= (stormproof_train.losses.MSE)",
    ),
    "nll on a number": (nn.Linear(4, 1), nn.NLLLoss(), NUMBERS, "NLLLoss is for classification"),
    "a function's mse on classes": (nn.Linear(4, 3), functional.mse_loss, CLASSES, "mse_loss is for regression"),
    "too few outputs": (nn.Linear(4, 2), nn.CrossEntropyLoss(), CLASSES, "returns (2, 2) for 2 samples"),
    "too many outputs": (nn.Linear(4, 2), nn.MSELoss(), NUMBERS, "needs (2, 1)"),
    "one output where a loss wants two": (nn.Linear(4, 1), losses.GaussianNLL(), NUMBERS, "needs (2, 2)"),
    "targets below the domain": (
        nn.Linear(4, 1),
        losses.Poisson(),
        DataSpec((4,), None, 1, target_mean=2.0, target_min=-1.5),
        "Poisson is for targets of 0 and above, but the training targets have minimum -1.5",
    ),
    "targets at an open bound": (
        nn.Linear(4, 1),
        losses.Gamma(),
        DataSpec((4,), None, 1, target_mean=2.0, target_min=0.0),
        "Gamma is for targets above 0, but the training targets have minimum 0",
    ),
    "nothing but zeros": (
        nn.Linear(4, 1),
        losses.Tweedie(),
        DataSpec((4,), None, 1, target_mean=0.0, target_min=0.0),
        "have minimum 0 and mean 0",
    ),
    "targets that nobody looked at": (
        nn.Linear(4, 1),
        losses.Poisson(),
        NUMBERS,
        "the smallest target of this data is unknown. Set `spec`",
    ),
    "weights of fewer classes for a loss of ours": (
        nn.Linear(4, 3),
        losses.Focal(class_weights=[1.0, 2.0]),
        CLASSES,
        "loss: Focal has weights or counts for 2 classes, but this data has 3. Set one per class",
    ),
    "log probabilities wanted, logits given": (
        nn.Linear(4, 3),
        nn.NLLLoss(),
        CLASSES,
        "loss: NLLLoss expects log probabilities, but this model returns logits. Choose loss=cross_entropy, or",
    ),
    "the same as a function": (nn.Linear(4, 3), functional.nll_loss, CLASSES, "nll_loss expects log probabilities"),
    "an input that the network asserts": (
        _FiveFeatures(),
        nn.CrossEntropyLoss(),
        CLASSES,
        "model: _FiveFeatures does not accept the input of this data, (batch, 4): five are needed",
    ),
    "no batch": (nn.Sequential(nn.Linear(4, 1), nn.Flatten(0)), nn.MSELoss(), NUMBERS, "returns (2,) for 2 samples"),
    "another input": (
        nn.Linear(5, 3),
        nn.CrossEntropyLoss(),
        CLASSES,
        "Linear does not accept the input of this data, (batch",
    ),
    "two outputs": (_Pair(), nn.MSELoss(), NUMBERS, "model: _Pair returns tuple for 2 samples"),
    "a loss a sample": (
        nn.Linear(4, 1),
        nn.MSELoss(reduction="none"),
        NUMBERS,
        "MSELoss returns (2, 1), expected a scalar",
    ),
    "a loss of no tensor": (nn.Linear(4, 1), lambda output, target: 0.0, NUMBERS, "returns float, expected a scalar"),
    "weights of other classes": (
        nn.Linear(4, 3),
        nn.CrossEntropyLoss(weight=torch.ones(2)),
        CLASSES,
        "CrossEntropyLoss does not fit classification with this data",
    ),
}


@pytest.mark.parametrize(("network", "loss", "spec", "sentence"), REFUSED.values(), ids=REFUSED.keys())
def test_what_does_not_fit_is_one_sentence(
    network: nn.Module, loss: Callable[..., torch.Tensor], spec: DataSpec, sentence: str
):
    with pytest.raises(UserError) as excinfo:
        check_fit(network, loss, spec)
    assert sentence in str(excinfo.value)
    assert "\n" not in str(excinfo.value)


def test_a_class_is_refused_before_one_is_built():
    check_task(losses.Focal, CLASSES)
    check_task(nn.MSELoss, CLASSES)  # of torch's classes nothing is known yet
    with pytest.raises(UserError, match="LogitAdjustment is for classification, but this data is for regression"):
        check_task(losses.LogitAdjustment, NUMBERS)


@pytest.mark.parametrize("classes", [2, 3, 4])
def test_a_function_for_numbers_is_refused_however_many_classes_there_are(classes: int):
    spec = DataSpec((4,), num_classes=classes, num_outputs=classes)
    with pytest.raises(UserError, match="mse_loss is for regression, but this data is for classification"):
        check_fit(nn.Linear(4, classes), functional.mse_loss, spec)


def test_trying_leaves_no_trace_in_the_network_or_in_chance():
    network = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))
    network[1].eval()
    state = {name: value.clone() for name, value in network.state_dict().items()}
    modes = [module.training for module in network.modules()]
    generator = torch.get_rng_state()
    check_fit(network, nn.CrossEntropyLoss(), CLASSES)
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    assert [module.training for module in network.modules()] == modes
    assert all(parameter.grad is None for parameter in network.parameters())
    assert torch.equal(torch.get_rng_state(), generator)


def test_a_network_that_fails_gets_its_mode_back():
    network = nn.Linear(5, 3)
    with pytest.raises(UserError):
        check_fit(network, nn.CrossEntropyLoss(), CLASSES)
    assert network.training


def test_every_task_has_a_default_that_fits():
    for spec in (CLASSES, NUMBERS):
        loss = getattr(losses, DEFAULT_LOSSES[spec.task].removeprefix("stormproof_train.losses."))()
        check_fit(nn.Linear(4, spec.num_outputs), loss, spec)
