"""Findings read as sentences."""

import pytest

from stormproof.finding import Finding, Problem, Severity
from stormproof.finding_sentences import TEMPLATES, describe_evidence

DEAD = Finding(
    Problem.DEAD_UNITS, Severity.WARNING, "network.2", 1, 20, {"dead": 24.0, "units": 32.0, "from_the_start": 0.0},
    "Try optimizer.lr=0.005 or activation=leaky_relu.", likely_cause="the learning rate (0.05) is too high",
)  # fmt: skip
SENTENCES = [
    (
        DEAD,
        ("warning: DEAD_UNITS  network.2: 24 of 32 units are dead since step 1 (0 at initialization). "
        "Likely cause: the learning rate (0.05) is too high. Try optimizer.lr=0.005 or activation=leaky_relu."),
    ),
    (
        Finding(
            Problem.OVERFITTING, Severity.WARNING, "", 220, 360,
            {"validation": 1.45, "best_validation": 1.33, "training": 0.2441}, "Stop at step 220.",
        ),
        ("warning: OVERFITTING  The validation loss rose from 1.33 (step 220) to 1.45, while the training loss fell to "
        "0.244. Stop at step 220."),
    ),
    (
        Finding(Problem.DEGENERATE_TARGETS, Severity.CRITICAL, "target", 0, 8, {"samples": 256.0}),
        "critical: DEGENERATE_TARGETS  The targets of all 256 samples are identical.",
    ),
    (
        Finding(Problem.NO_GRADIENT, Severity.CRITICAL, "net.0", 0, 1, {"layers": 1.0, "cut_by": "detach"}),
        "critical: NO_GRADIENT  net.0: no gradient reaches 1 layer, because detach cuts the graph.",
    ),
    (
        Finding(
            Problem.NO_BETTER_THAN_CONSTANT, Severity.INFO, "", 0, 40,
            {"loss": 2.0, "loss_of_the_best_constant": 2.0, "until_step": 90.0},
        ),
        "info: NO_BETTER_THAN_CONSTANT  The loss is 2. The best constant prediction has 2. Resolved by step 90.",
    ),
    (
        Finding(
            Problem.VANISHING_GRADIENTS, Severity.WARNING, "net.1", 0, 10,
            {"gradient_norm": 2.59e-7, "gradient_norm_of_net.17": 0.733},
        ),
        "warning: VANISHING_GRADIENTS  net.1: the gradient norm is 2.59e-07, but 0.733 in net.17.",
    ),
    (
        Finding(Problem.DEAD_UNITS, Severity.WARNING, "net.1", 3, 20, {"dead": 0.97}),
        "warning: DEAD_UNITS  net.1: dead units since step 3 (dead 0.97).",
    ),
    (Finding(Problem.PLATEAU, Severity.INFO, "", 3, 20), "info: PLATEAU  Plateau since step 3."),
]  # fmt: skip


@pytest.mark.parametrize(("finding", "sentence"), SENTENCES)
def test_a_finding_reads_as_a_sentence(finding: Finding, sentence: str):
    assert str(finding) == sentence


def test_every_problem_has_a_template():
    assert TEMPLATES.keys() == set(Problem)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1e30])
def test_evidence_need_not_be_finite(value: float):
    text = describe_evidence(Problem.EXPLODING_GRADIENTS, 0, {"gradient_norm": value})
    assert text == f"the total gradient norm is {value:.3g} in the first measured step."


def test_a_record_without_a_likely_cause_is_read():
    record = {name: value for name, value in DEAD.as_dict().items() if name != "likely_cause"}
    assert Finding.from_dict(record).likely_cause == ""


def test_every_value_of_a_problem_is_its_name():
    assert [problem.value for problem in Problem] == [problem.name.lower() for problem in Problem]
