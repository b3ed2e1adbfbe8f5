from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional

from stormproof_train.data.spec import DataSpec
from stormproof_train.errors import UserError
from stormproof_train.losses import DEFAULT, check_fit

CLASSES = DataSpec((4,), num_classes=3, num_outputs=3)
NUMBERS = DataSpec((4,), num_classes=None, num_outputs=1)

FITS = {
    "cross-entropy": (nn.CrossEntropyLoss(label_smoothing=0.1), CLASSES),
    "cross-entropy with weights": (nn.CrossEntropyLoss(weight=torch.ones(3)), CLASSES),
    "multi-margin": (nn.MultiMarginLoss(), CLASSES),
    "cross-entropy as a function": (functional.cross_entropy, CLASSES),
    "squared error": (nn.MSELoss(), NUMBERS),
    "summed squared error": (nn.MSELoss(reduction="sum"), NUMBERS),
    "Huber": (nn.HuberLoss(), NUMBERS),
    "absolute error as a function": (functional.l1_loss, NUMBERS),
}


@pytest.mark.parametrize(("loss", "spec"), FITS.values(), ids=FITS.keys())
def test_a_loss_that_fits_is_let_through(loss: Callable[..., torch.Tensor], spec: DataSpec):
    check_fit(nn.Linear(4, spec.num_outputs), loss, spec)


class _Pair(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x, x


REFUSED = {
    "mse on classes": (nn.Linear(4, 3), nn.MSELoss(), CLASSES, "MSELoss is for regression, and this data is classif"),
    "l1 on classes": (nn.Linear(4, 3), nn.L1Loss(), CLASSES, "leave loss= out (torch.nn.CrossEntropyLoss)"),
    "cross-entropy on a number": (
        nn.Linear(4, 1),
        nn.CrossEntropyLoss(),
        NUMBERS,
        "leave loss= out (torch.nn.MSELoss)",
    ),
    "nll on a number": (nn.Linear(4, 1), nn.NLLLoss(), NUMBERS, "NLLLoss is for classification"),
    "a function's mse on classes": (nn.Linear(4, 3), functional.mse_loss, CLASSES, "mse_loss is for regression"),
    "too few outputs": (nn.Linear(4, 2), nn.CrossEntropyLoss(), CLASSES, "gives (2, 2) for 2 samples"),
    "too many outputs": (nn.Linear(4, 2), nn.MSELoss(), NUMBERS, "needs (2, 1)"),
    "no batch": (nn.Sequential(nn.Linear(4, 1), nn.Flatten(0)), nn.MSELoss(), NUMBERS, "gives (2,) for 2 samples"),
    "another input": (
        nn.Linear(5, 3),
        nn.CrossEntropyLoss(),
        CLASSES,
        "Linear does not take this data's input, (batch",
    ),
    "two outputs": (_Pair(), nn.MSELoss(), NUMBERS, "model: _Pair gives tuple for 2 samples"),
    "a loss a sample": (nn.Linear(4, 1), nn.MSELoss(reduction="none"), NUMBERS, "MSELoss gives (2, 1), and training"),
    "a loss of no tensor": (nn.Linear(4, 1), lambda output, target: 0.0, NUMBERS, "gives float, and training needs"),
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
    with pytest.raises(UserError) as caught:
        check_fit(network, loss, spec)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("classes", [2, 3, 4])
def test_a_function_for_numbers_is_refused_however_many_classes_there_are(classes: int):
    spec = DataSpec((4,), num_classes=classes, num_outputs=classes)
    with pytest.raises(UserError, match="mse_loss is for regression, and this data is classification"):
        check_fit(nn.Linear(4, classes), functional.mse_loss, spec)


def test_trying_leaves_no_trace_in_the_network_or_in_chance():
    network = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))
    network[1].eval()
    state = {name: value.clone() for name, value in network.state_dict().items()}
    modes = [module.training for module in network.modules()]
    chance = torch.get_rng_state()
    check_fit(network, nn.CrossEntropyLoss(), CLASSES)
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    assert [module.training for module in network.modules()] == modes
    assert all(parameter.grad is None for parameter in network.parameters())
    assert torch.equal(torch.get_rng_state(), chance)


def test_a_network_that_fails_gets_its_mode_back():
    network = nn.Linear(5, 3)
    with pytest.raises(UserError):
        check_fit(network, nn.CrossEntropyLoss(), CLASSES)
    assert network.training


def test_every_task_has_a_default_that_fits():
    for spec in (CLASSES, NUMBERS):
        loss = getattr(nn, DEFAULT[spec.task].removeprefix("torch.nn."))()
        check_fit(nn.Linear(4, spec.num_outputs), loss, spec)
