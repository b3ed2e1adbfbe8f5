"""Findings are grouped by root cause."""

import pytest

from stormproof.finding import Finding, Problem, Severity
from stormproof.health.record import Record
from stormproof.health.root_causes import apply_rules, find_root_causes
from stormproof.health.rules import RULES


def make_finding(problem: Problem, severity: Severity = Severity.WARNING, where: str = "") -> Finding:
    return Finding(problem, severity, where, 0, 10)


def test_every_problem_has_one_rule():
    assert sorted(rule.problem for rule in RULES) == sorted(Problem)


def test_an_empty_record_has_no_findings():
    assert apply_rules(Record()) == []


@pytest.mark.parametrize("order", [1, -1])
def test_a_nan_in_the_data_explains_the_dead_layer(order: int):
    both = [
        make_finding(Problem.NON_FINITE_DATA, Severity.CRITICAL, "batch[0]"),
        make_finding(Problem.DEAD_UNITS, where="net.2"),
    ]
    roots = find_root_causes(both[::order])
    assert [root.problem for root in roots] == [Problem.NON_FINITE_DATA]
    assert roots[0].consequences == ("dead_units in net.2",)


def test_two_causes_stay_two():
    roots = find_root_causes([make_finding(Problem.OVERFITTING), make_finding(Problem.BROADCAST_MISMATCH)])
    assert [root.problem for root in roots] == [Problem.BROADCAST_MISMATCH, Problem.OVERFITTING]


def test_two_layers_with_one_problem_are_one_finding():
    roots = find_root_causes(
        [make_finding(Problem.DEAD_UNITS, where="net.1"), make_finding(Problem.DEAD_UNITS, where="net.3")]
    )
    assert [root.where for root in roots] == ["net.1"]


def test_info_findings_explain_nothing_and_come_last():
    may_be = make_finding(Problem.NO_GRADIENT, Severity.INFO, "head")
    roots = find_root_causes([may_be, make_finding(Problem.NO_BETTER_THAN_CONSTANT)])
    assert [root.problem for root in roots] == [Problem.NO_BETTER_THAN_CONSTANT, Problem.NO_GRADIENT]
    assert roots[0].consequences == roots[1].consequences == ()


def test_a_finding_survives_as_plain_values():
    evidence = {"loss": 0.5, "name": "x"}
    finding = Finding(Problem.PLATEAU, Severity.INFO, "", 3, 9, evidence, "Wait.", ("a", "b"), "noise")
    assert Finding.from_dict(finding.as_dict()) == finding


@pytest.mark.parametrize(
    ("problem", "where", "title"),
    [
        (Problem.DEAD_UNITS, "net.1", "DEAD_UNITS in net.1"),
        (Problem.NO_GRADIENT, "n", "NO_GRADIENT in n"),
        (Problem.DEGENERATE_TARGETS, "target", "DEGENERATE_TARGETS"),
        (Problem.INPUT_BADLY_SCALED, "input", "INPUT_BADLY_SCALED"),
        (Problem.OVERFITTING, "", "OVERFITTING"),
    ],
)
def test_a_title_is_the_code_and_an_informative_place(problem: Problem, where: str, title: str):
    assert make_finding(problem, where=where).title == title
