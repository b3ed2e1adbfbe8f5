import math
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from scipy import optimize
from torch import nn
from torch.nn import functional

from stormproof_train.losses import MAE, CrossEntropy, MultiMargin, best_constant
from stormproof_train.losses.constant_search import minimize_constant
from tests.support.cases import slow_except, vary_one_factor
from tests.support.loss_references import CLASSIFICATION_CASES, REGRESSION_CASES, LossCase, Reference, output_width

GENERATOR = torch.Generator().manual_seed(0)
CLASSES = {
    "as many of each": torch.arange(30) % 3,
    "one class nearly alone": torch.tensor([0] * 37 + [1, 2, 2]),
    "a class that is missing": torch.tensor([0] * 5 + [2] * 15),
    "one class alone": torch.full((4,), 2),
    "mixed labels": torch.softmax(3 * torch.randn(25, 3, generator=GENERATOR), dim=1),
}
NUMBERS = {
    "two skewed outputs": torch.randn(41, 2, generator=GENERATOR).exp(),
    "ties": torch.tensor([[1.0], [1.0], [2.0], [2.0], [7.0], [7.0]]),
    "two clusters": torch.cat([torch.randn(20, 1, generator=GENERATOR) / 9 + 1, torch.full((15, 1), 9.0)]),
    "a cluster far from the median": torch.tensor([*range(11), *[20] * 8], dtype=torch.float32).unsqueeze(1),
    "always the same": torch.full((5, 1), 3.0),
}


def _brute_force(reference: Reference, target: np.ndarray, columns: int) -> float:
    """The lowest value that SciPy finds, without and with derivatives, from several starts."""
    generator = np.random.default_rng(0)
    quantiles = np.quantile(target, [0.2, 0.5, 0.9])
    starts = [
        np.zeros(columns),
        *(np.full(columns, quantile) for quantile in quantiles),
        generator.normal(0, 4, columns),
    ]

    def at(constant: np.ndarray) -> float:
        return reference(np.broadcast_to(constant.clip(-40, 40), (len(target), columns)), target)

    losses = []
    for start in starts:
        first = optimize.minimize(at, start, method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-12})
        losses += [first.fun, optimize.minimize(at, first.x, method="Powell", options={"xtol": 1e-9}).fun]
    return min(losses)


def _as_probabilities(target: torch.Tensor) -> np.ndarray:
    return (target if target.is_floating_point() else functional.one_hot(target, 3)).double().numpy()


def _assert_none_is_better(loss: Any, target: torch.Tensor, columns: int, best: float) -> None:
    exact = loss.double()
    constants = 4 * torch.randn(100, columns, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    float_target = target.double() if target.is_floating_point() else target
    values = [exact(constant.expand(len(target), -1), float_target).item() for constant in constants]
    assert min(values) >= best - 1e-6


BALANCED_SMOOTH = CLASSIFICATION_CASES[2]
CAUCHY = REGRESSION_CASES[-1]  # has several valleys


@pytest.mark.parametrize(
    ("case", "kind"),
    slow_except(
        product(CLASSIFICATION_CASES, CLASSES),
        [
            (case, kind)
            for case, kind in vary_one_factor(CLASSIFICATION_CASES, CLASSES, BALANCED_SMOOTH, "one class nearly alone")
            if case is BALANCED_SMOOTH or str(case) in {"focal", "bce", "multi_margin", "brier"}
        ],
    ),
    ids=str,
)
def test_the_best_constant_is_that_of_brute_force_on_classes(case: LossCase, kind: str):
    target, loss = CLASSES[kind], case.build()
    if case.name == "multi_margin" and target.is_floating_point():
        return
    best = loss.best_constant(target)
    assert best == pytest.approx(_brute_force(case.reference, _as_probabilities(target), 3), abs=1e-4)
    _assert_none_is_better(loss, target, 3, best)


@pytest.mark.parametrize(
    ("case", "kind"),
    slow_except(
        product(REGRESSION_CASES, NUMBERS),
        vary_one_factor(REGRESSION_CASES[::3], NUMBERS, CAUCHY, "two skewed outputs"),
    ),
    ids=str,
)
def test_the_best_constant_is_that_of_brute_force_on_numbers(case: LossCase, kind: str):
    target, loss = NUMBERS[kind], case.build()
    columns = output_width(loss, target.shape[1])
    best = loss.best_constant(target)
    assert best == pytest.approx(_brute_force(case.reference, target.double().numpy(), columns), abs=1e-4)
    _assert_none_is_better(loss, target, columns, best)


@pytest.mark.parametrize("margin", [1.0, 0.5])
@pytest.mark.parametrize("classes", [2, 4, 7])
def test_the_least_hinges_are_those_of_a_linear_program(classes: int, margin: float):
    shares = np.random.default_rng(classes).dirichlet(np.full(classes, 0.7))
    counts = np.maximum((shares * 200).round(), 1).astype(int)
    pairs = [(c, j) for c in range(classes) for j in range(classes) if c != j]
    rows = np.zeros((len(pairs), classes + len(pairs)))
    for row, (c, j) in enumerate(pairs):  # margin - z_c + z_j <= slack
        rows[row, c], rows[row, j], rows[row, classes + row] = -1, 1, -1
    cost = np.concatenate([np.zeros(classes), [counts[c] / counts.sum() / classes for c, _ in pairs]])
    bounds = [(None, None)] * classes + [(0, None)] * len(pairs)
    solved = optimize.linprog(cost, rows, np.full(len(pairs), -margin), bounds=bounds)
    target = torch.from_numpy(np.repeat(np.arange(classes), counts))
    assert MultiMargin(margin=margin).best_constant(target) == pytest.approx(solved.fun, abs=1e-9)


TORCHS = {
    "cross-entropy": (nn.CrossEntropyLoss(), CLASSES["one class nearly alone"], CrossEntropy()),
    "cross-entropy as a function": (functional.cross_entropy, CLASSES["mixed labels"], CrossEntropy()),
    "absolute error": (nn.L1Loss(), NUMBERS["two skewed outputs"], MAE()),
    "absolute error as a function": (functional.l1_loss, NUMBERS["ties"], MAE()),
}


@pytest.mark.parametrize(("loss", "target", "ours"), TORCHS.values(), ids=TORCHS.keys())
def test_a_loss_that_brings_none_is_searched(loss: Any, target: torch.Tensor, ours: Any):
    assert best_constant(loss, target) == pytest.approx(best_constant(ours, target), abs=1e-4)


def test_a_search_that_starts_in_several_valleys_finds_the_lowest():
    def wells(outputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return ((outputs - 1).square() * (outputs + 2).square() + 0.1 * outputs).mean()

    starts = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)  # the better one is above the shallow well
    deep, shallow = (minimize_constant(wells, torch.zeros(1, 1), starts[order]) for order in ([0, 1], [0]))
    assert deep < -0.2 < 0.09 < shallow


def test_a_search_leaves_the_loss_and_its_gradients_alone():
    loss = nn.CrossEntropyLoss(weight=torch.ones(3))
    with torch.no_grad():
        assert best_constant(loss, torch.arange(6) % 3) == pytest.approx(math.log(3), abs=1e-6)
    assert loss.weight is not None
    assert loss.weight.dtype == torch.float32
