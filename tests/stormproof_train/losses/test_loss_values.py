import inspect
import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (its name everywhere)
import yaml
from torch import nn

from stormproof_train import losses
from stormproof_train.errors import UserError
from stormproof_train.losses.contract import loss_properties
from tests.support.forked_command import ROOT
from tests.support.loss_references import (
    CLASSIFICATION_CASES,
    LOSS_NAMES,
    REGRESSION_CASES,
    WITHOUT_CASE,
    LossCase,
    build_loss,
    output_width,
)

LOGITS = 3 * torch.randn(50, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
LABELS = torch.multinomial(torch.tensor([0.6, 0.1, 0.3]), 50, True, generator=torch.Generator().manual_seed(2))
ONE_HOT = F.one_hot(LABELS, 3).double()
MIXED = 0.7 * ONE_HOT + 0.3 * ONE_HOT.flip(0)
NUMBERS = torch.randn(50, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64).exp()
OUTPUTS = torch.randn(50, 4, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


def value(loss: Any, outputs: torch.Tensor, target: torch.Tensor) -> float:
    return (loss.double() if isinstance(loss, nn.Module) else loss)(outputs, target).item()


def test_the_losses_are_found():
    assert len(LOSS_NAMES) >= 20


@pytest.mark.parametrize("word", LOSS_NAMES)
def test_a_loss_has_a_reference(word: str):
    assert word not in WITHOUT_CASE, (
        f"Add `LossCase({word!r}, {{}}, <formula in NumPy>)` to tests/support/loss_references.py."
    )


@pytest.mark.parametrize("name", losses.LOSSES)
def test_a_loss_class_has_an_option(name: str):
    targets = {yaml.safe_load(file.read_text())["_target_"] for file in (ROOT / "conf" / "loss").glob("*.yaml")}
    target = f"stormproof_train.losses.{name}"
    assert target in targets, f"Add a file to conf/loss/ with `_target_: {target}`."


@pytest.mark.parametrize("case", CLASSIFICATION_CASES, ids=str)
def test_the_value_is_that_of_the_formula_for_class_indices_and_for_probabilities(case: LossCase):
    loss = case.build()
    expected = case.reference(LOGITS.numpy(), ONE_HOT.numpy())
    assert value(loss, LOGITS, LABELS) == pytest.approx(expected, rel=1e-6)
    if case.name == "multi_margin":  # takes no probabilities
        return
    assert value(loss, LOGITS, ONE_HOT) == pytest.approx(value(loss, LOGITS, LABELS), rel=1e-9)
    assert value(loss, LOGITS, MIXED) == pytest.approx(case.reference(LOGITS.numpy(), MIXED.numpy()), rel=1e-6)


def test_a_margin_has_no_form_for_class_probabilities_and_says_so():
    loss = build_loss("multi_margin")
    for ask in (lambda: loss(LOGITS, MIXED), lambda: loss.best_constant(MIXED)):
        with pytest.raises(UserError, match=r"MultiMargin needs class indices \(batch,\), got class probabilities"):
            ask()


@pytest.mark.parametrize("case", REGRESSION_CASES, ids=str)
def test_the_value_for_numbers_is_that_of_the_formula(case: LossCase):
    loss = case.build()
    outputs = OUTPUTS[:, : output_width(loss, 2)]
    assert value(loss, outputs, NUMBERS) == pytest.approx(case.reference(outputs.numpy(), NUMBERS.numpy()), rel=1e-9)


def _slope(loss: Any, outputs: torch.Tensor, target: torch.Tensor) -> list[float]:
    at = outputs.clone().requires_grad_()
    return torch.autograd.grad(loss(at, target), at)[0].flatten().tolist()


SPECIAL_CASES = {
    "focal without focus": (build_loss("focal", gamma=0.0), F.cross_entropy),
    "poly-1 without its term": (build_loss("poly1", epsilon=0.0), F.cross_entropy),
    "generalized towards 0": (build_loss("generalized_cross_entropy", q=1e-7), F.cross_entropy),
    "symmetric one way": (build_loss("symmetric_cross_entropy", alpha=1.0, beta=0.0), F.cross_entropy),
    "no adjustment": (build_loss("logit_adjustment", tau=0.0), F.cross_entropy),
    "asymmetric without focus": (
        build_loss("asymmetric", gamma_negative=0.0, label_smoothing=0.2),
        nn.CrossEntropyLoss(label_smoothing=0.2),
    ),
    "asymmetric without smoothing": (
        build_loss("asymmetric", gamma_positive=2.0, label_smoothing=0.0),
        losses.Focal(gamma=2.0),
    ),
    "effective numbers towards 1": (build_loss("class_balanced", beta=1 - 1e-9), build_loss("balanced")),
}


@pytest.mark.parametrize(("loss", "known"), SPECIAL_CASES.values(), ids=SPECIAL_CASES.keys())
def test_at_the_end_of_its_range_a_classification_loss_is_a_known_one(loss: Any, known: Any):
    assert value(loss, LOGITS, LABELS) == pytest.approx(value(known, LOGITS, LABELS), rel=1e-5)


NUMBERS_CASES = {
    "the median's pinball": (build_loss("pinball"), lambda outputs, target: F.l1_loss(outputs, target) / 2),
    "smooth L1 is Huber by its delta": (
        build_loss("smooth_l1", beta=0.4),
        lambda outputs, target: F.huber_loss(outputs, target, delta=0.4) / 0.4,
    ),
    "a wide Huber": (build_loss("huber", delta=1e3), lambda outputs, target: F.mse_loss(outputs, target) / 2),
    "a wide Cauchy": (
        build_loss("cauchy", scale=1e4),
        lambda outputs, target: F.mse_loss(outputs, target) / 2e8,
    ),
    "Tweedie towards 1": (build_loss("tweedie", power=1 + 1e-7), build_loss("poisson")),
    "Tweedie towards 2": (build_loss("tweedie", power=2 - 1e-7), build_loss("gamma")),
    "torch's Gaussian": (
        build_loss("gaussian_nll"),
        lambda outputs, target: F.gaussian_nll_loss(outputs[:, :2], target, outputs[:, 2:].exp()),
    ),
}


@pytest.mark.parametrize(("loss", "known"), NUMBERS_CASES.values(), ids=NUMBERS_CASES.keys())
def test_at_the_end_of_its_range_a_regression_loss_has_the_slope_of_a_known_one(loss: Any, known: Any):
    outputs = OUTPUTS[:, : output_width(loss, 2)]
    assert _slope(loss, outputs, NUMBERS) == pytest.approx(_slope(known, outputs, NUMBERS), rel=1e-4, abs=1e-12)


@pytest.mark.parametrize("name", ["gamma", "tweedie", "poisson"])
def test_another_unit_of_the_target_changes_no_slope_but_by_a_factor(name: str):
    """Which is why these targets may be divided by their mean."""
    loss, by = build_loss(name), 7.0
    slope = _slope(loss, OUTPUTS[:, :2], NUMBERS)
    scaled_slope = _slope(loss, OUTPUTS[:, :2] - math.log(by), NUMBERS / by)
    assert np.ptp(np.array(slope) / np.array(scaled_slope)) < 1e-8


IMPOSSIBLE = [
    ("cross_entropy", {"class_weights": [1.0, -1.0]}, "`class_weights` must be finite and above 0"),
    ("cross_entropy", {"class_weights": [0.0, 1.0]}, "`class_weights` must be finite and above 0"),
    ("class_balanced", {"beta": 1.0}, "`beta` must be in"),
    ("logit_adjustment", {"tau": -1.0}, "`tau` must be at least 0, got -1.0"),
    ("focal", {"gamma": -1.0}, "`gamma` must be at least 0, got -1.0"),
    ("poly1", {"epsilon": -2.0}, "`epsilon` must be at least -1, got -2.0"),
    ("generalized_cross_entropy", {"q": 0.0}, "`q` must be in (0, 1], got 0.0"),
    ("symmetric_cross_entropy", {"alpha": 0.0, "beta": 0.0}, "`alpha` or `beta` must be above 0, got 0.0 and 0.0"),
    ("symmetric_cross_entropy", {"log_of_zero": 0.0}, "`log_of_zero` must be finite and below 0, got 0.0"),
    ("asymmetric", {"gamma_negative": -1.0}, "`gamma_negative` must be at least 0, got -1.0"),
    ("asymmetric", {"label_smoothing": 2.0}, "`label_smoothing` must be in [0, 1], got 2.0"),
    ("multi_margin", {"margin": 0.0}, "`margin` must be above 0, got 0.0"),
    ("multi_margin", {"p": 3}, "loss.p must be"),
    ("huber", {"delta": 0.0}, "`delta` must be above 0, got 0.0"),
    ("smooth_l1", {"beta": -1.0}, "`beta` must be at least 0, got -1.0"),
    ("pinball", {"quantile": 1.0}, "`quantile` must be in (0, 1), got 1.0"),
    ("tweedie", {"power": 2.0}, "Use loss=poisson for 1 and loss=gamma for 2"),
    ("gaussian_nll", {"eps": 0.0}, "`eps` must be above 0, got 0.0"),
    ("cauchy", {"scale": 0.0}, "`scale` must be above 0, got 0.0"),
    ("cross_entropy", {"class_weights": [math.inf, 1.0]}, "`class_weights` must be finite"),
    ("label_smoothing", {"label_smoothing": 2.0}, "`label_smoothing` must be in [0, 1], got 2.0"),
    ("poly1", {"epsilon": math.inf}, "`epsilon` must be finite and at least -1, got inf"),
    ("cauchy", {"scale": math.inf}, "`scale` must be finite and above 0, got inf"),
    ("cross_entropy", {"class_weights": "balance"}, "loss.class_weights must be"),
]


@pytest.mark.parametrize(("word", "arguments", "sentence"), IMPOSSIBLE, ids=str)
def test_an_impossible_value_is_one_sentence(word: str, arguments: dict[str, Any], sentence: str):
    with pytest.raises(UserError) as excinfo:
        build_loss(word, **arguments)
    assert sentence in str(excinfo.value)
    assert "\n" not in str(excinfo.value)


NUMBERS_TAKEN = [
    (word, name)
    for word in LOSS_NAMES
    for name, parameter in inspect.signature(type(build_loss(word)).__init__).parameters.items()
    if parameter.annotation == "float"
]


@pytest.mark.parametrize(("word", "name"), NUMBERS_TAKEN, ids=str)
def test_what_is_not_finite_is_no_argument_of_a_loss(word: str, name: str):
    for value in (math.nan, math.inf, -math.inf):
        with pytest.raises(UserError, match=f"`{name}` must be .*, got {value}"):
            build_loss(word, **{name: value})


@pytest.mark.parametrize(
    ("loss", "counts", "sentence"),
    [
        (losses.ClassBalanced, None, "Add an attribute class_counts to the data module, or set loss.class_counts="),
        (losses.LogitAdjustment, (3, 0, 2), "class 1 has no training sample"),
    ],
)
def test_classes_that_nobody_counted_are_a_sentence(loss: Any, counts: Any, sentence: str):
    with pytest.raises(ValueError, match=sentence):
        loss(class_counts=counts)


def test_weights_come_from_the_counts_or_from_the_list():
    weights = losses.CrossEntropy(class_weights="balanced", class_counts=(30, 10)).weight
    assert weights.tolist() == pytest.approx([2 / 3, 2])  # scikit-learn's
    assert losses.Focal(class_weights=[1, 4]).weight.tolist() == [1.0, 4.0]
    assert losses.CrossEntropy(class_counts=(30, 10)).weight is None


def test_what_a_loss_does_not_say_is_what_torch_means():
    facts = loss_properties(nn.MSELoss())
    assert (facts.name, facts.task, facts.outputs_per_target) == ("MSELoss", "regression", 1)
    assert (facts.scaling, facts.domain) == ("standardized", "of any size")
    assert facts.prediction(OUTPUTS) is OUTPUTS
    assert loss_properties(lambda outputs, target: outputs.sum()).task is None
    assert loss_properties(F.cross_entropy).task == loss_properties(nn.NLLLoss()).task == "classification"
