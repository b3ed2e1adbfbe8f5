"""Advice fits the configuration of the run."""

import pytest
from hydra import compose, initialize_config_dir

from stormproof.finding import Finding, Problem, Severity
from stormproof_train.config.advice import make_advisor
from stormproof_train.config.conf_dir import conf_dir
from stormproof_train.config.hydra_defaults import VERSION_BASE
from stormproof_train.config.overrides import normalize_overrides
from stormproof_train.config.plan import read_plan
from tests.support.cases import slow_except

DIED = {"dead": 24.0, "units": 32.0, "from_the_start": 0.0}
CASES = [
    (Problem.LEARNING_RATE_TOO_HIGH, ["optimizer.lr=0.5"], "Try optimizer.lr=0.05."),
    (Problem.LEARNING_RATE_TOO_HIGH, ["optimizer.lr=0"], None),
    (Problem.LEARNING_RATE_TOO_LOW, ["optimizer.lr=1e-6"], "Try optimizer.lr=1e-05."),
    (Problem.LEARNING_RATE_ZERO, ["optimizer.lr=0"], "Try optimizer.lr=0.001."),
    (Problem.LEARNING_RATE_ZERO, ["scheduler=cosine"], "Try scheduler=none."),
    (Problem.DEAD_UNITS, ["activation=relu", "optimizer.lr=0.05"], "Try optimizer.lr=0.005 or activation=leaky_relu."),
    (
        Problem.DEAD_UNITS,
        ["activation=squared_relu", "optimizer.lr=0.1"],
        "Try optimizer.lr=0.01 or activation=leaky_relu.",
    ),
    (Problem.DEAD_UNITS, ["activation=reglu", "optimizer.lr=0.1"], "Try optimizer.lr=0.01."),
    (Problem.DEAD_UNITS, ["activation=hardtanh", "optimizer.lr=0.1"], "Try optimizer.lr=0.01."),
    (Problem.DEAD_UNITS, ["activation=leaky_relu", "optimizer.lr=0.1"], "Try optimizer.lr=0.01."),
    (Problem.VANISHING_GRADIENTS, ["activation=sigmoid"], "Try activation=elu."),
    (
        Problem.VANISHING_GRADIENTS,
        ["activation=sigmoid", "initialization=torch"],
        "Try activation=elu initialization=auto.",
    ),
    (Problem.VANISHING_GRADIENTS, ["activation=elu", "initialization=torch"], "Try initialization=auto."),
    (Problem.VANISHING_GRADIENTS, ["activation=elu"], "Try model.norm=batch."),
    (Problem.EXPLODING_GRADIENTS, ["initialization=torch"], "Try initialization=auto."),
    (Problem.EXPLODING_GRADIENTS, [], "Try trainer.gradient_clip_val=1.0."),
    (Problem.OVERFITTING, [], "Try callbacks=early_stopping model.dropout=0.3."),
    (Problem.OVERFITTING, ["model.dropout=0.5"], "Try callbacks=early_stopping."),
    (Problem.OVERFITTING, ["callbacks=early_stopping", "model.dropout=0.3"], "Try model.dropout=0.5."),
    (Problem.OVERFITTING, ["callbacks=early_stopping", "model.dropout=0.5"], None),
    (Problem.DATA_STARVATION, [], "Try data.num_workers=2."),
    (Problem.BROADCAST_MISMATCH, [], None),
]


@pytest.mark.parametrize(("problem", "words", "expected"), slow_except(CASES, CASES[::6]))
def test_the_overrides_fit_the_configuration(problem: Problem, words: list[str], expected: str | None):
    advise = make_advisor(_plan(words))
    assert advise(Finding(problem, Severity.WARNING, "", 0, 10, DIED)) == expected
    if expected is not None:
        for alternative in expected.removeprefix("Try ").removesuffix(".").split(" or "):
            _plan([*words, *alternative.split()])


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["activation=relu", "initialization=torch"], "Try initialization=auto or activation=leaky_relu."),
        (["activation=relu"], "Try activation=leaky_relu."),
    ],
)
def test_the_advice_for_units_dead_at_initialization_does_not_lower_the_learning_rate(words: list[str], expected: str):
    finding = Finding(Problem.DEAD_UNITS, Severity.WARNING, "", 0, 10, {**DIED, "from_the_start": 24.0})
    assert make_advisor(_plan(words))(finding) == expected


def _plan(overrides: list[str]):
    with initialize_config_dir(str(conf_dir()), **VERSION_BASE):
        return read_plan(compose("config", normalize_overrides(overrides)))
