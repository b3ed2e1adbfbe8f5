"""Rules are ordered by what they explain, and their findings are grouped by root cause."""

import json
from typing import Any

import pytest

from stormproof.finding import Finding, Problem, Severity
from stormproof.health.record import Record
from stormproof.health.rule import Rule
from stormproof.health.rule_set import RuleSet
from stormproof.health.rules import default_rules

RULES = RuleSet(default_rules())


def make_finding(problem: Problem, severity: Severity = Severity.WARNING, where: str = "") -> Finding:
    return Finding(problem, severity, where, 0, 10)


def test_every_problem_has_one_rule():
    assert sorted(rule.problem for rule in default_rules()) == sorted(Problem)


def test_an_empty_record_has_no_findings():
    assert RULES.apply(Record()) == []


@pytest.mark.parametrize("order", [1, -1])
def test_a_nan_in_the_data_explains_the_dead_layer(order: int):
    both = [
        make_finding(Problem.NON_FINITE_DATA, Severity.CRITICAL, "batch[0]"),
        make_finding(Problem.DEAD_UNITS, where="net.2"),
    ]
    roots = RULES.find_root_causes(both[::order])
    assert [root.problem for root in roots] == [Problem.NON_FINITE_DATA]
    assert roots[0].consequences == ("dead_units in net.2",)


def test_two_causes_stay_two():
    roots = RULES.find_root_causes([make_finding(Problem.OVERFITTING), make_finding(Problem.BROADCAST_MISMATCH)])
    assert [root.problem for root in roots] == [Problem.BROADCAST_MISMATCH, Problem.OVERFITTING]


def test_two_layers_with_one_problem_are_one_finding():
    roots = RULES.find_root_causes(
        [make_finding(Problem.DEAD_UNITS, where="net.1"), make_finding(Problem.DEAD_UNITS, where="net.3")]
    )
    assert [root.where for root in roots] == ["net.1"]


def test_info_findings_explain_nothing_and_come_last():
    may_be = make_finding(Problem.NO_GRADIENT, Severity.INFO, "head")
    roots = RULES.find_root_causes([may_be, make_finding(Problem.NO_BETTER_THAN_CONSTANT)])
    assert [root.problem for root in roots] == [Problem.NO_BETTER_THAN_CONSTANT, Problem.NO_GRADIENT]
    assert roots[0].consequences == roots[1].consequences == ()


def make_rule(problem: str, *explains: str, severity: Severity = Severity.WARNING) -> Rule:
    """Returns a rule that reports its problem in each record after the first step."""

    def check(record: Record) -> list[Finding]:
        return [Finding(problem, severity, step=record.step, text="it is.")] if record.step else []

    return Rule(problem, check, explains=frozenset(explains))


@pytest.mark.parametrize("order", [1, -1])
def test_the_order_follows_from_what_the_rules_explain(order: int):
    rules = [make_rule("first", "second"), make_rule("second", "third"), make_rule("third"), make_rule("other")]
    rule_set = RuleSet(rules[::order])
    findings = rule_set.apply(Record(step=1))
    assert [finding.problem for finding in findings] == ["first", "second", "other", "third"]
    roots = rule_set.find_root_causes(findings)
    assert [(root.problem, root.consequences) for root in roots] == [
        ("first", ("second",)),
        ("other", ()),
        ("third", ()),  # not explained by "first"
    ]


def test_a_rule_of_a_user_joins_the_default_rules():
    rule_set = RuleSet([*default_rules(), make_rule("huge_initial_loss", Problem.LOSS_SPIKE)])
    roots = rule_set.find_root_causes([make_finding(Problem.LOSS_SPIKE), *rule_set.apply(Record(step=1))])
    assert [(root.code, root.consequences) for root in roots] == [("HUGE_INITIAL_LOSS", ("loss_spike",))]
    assert str(roots[0]) == "warning: HUGE_INITIAL_LOSS  It is."


@pytest.mark.parametrize("name", ["PLATEAU", "plateau", Problem.PLATEAU])
def test_a_disabled_rule_reports_nothing(name: str):
    rule_set = RuleSet([make_rule(Problem.PLATEAU), make_rule("other")], disable={name})
    assert [finding.problem for finding in rule_set.apply(Record(step=1))] == ["other"]


@pytest.mark.parametrize(("name", "severity"), [("OVERFITTING", "info"), ("overfitting", "CRITICAL")])
def test_the_severity_of_a_problem_can_be_set(name: str, severity: str):
    rule_set = RuleSet([make_rule(Problem.OVERFITTING), make_rule("other")], severity={name: severity})
    assert {finding.problem: finding.severity for finding in rule_set.apply(Record(step=1))} == {
        "overfitting": severity.lower(),
        "other": "warning",
    }


@pytest.mark.parametrize(
    ("rules", "settings", "message"),
    [
        ([make_rule("a"), make_rule("a")], {}, "one rule per problem, got two for A"),
        ([make_rule("a", "b"), make_rule("b", "a")], {}, "A and B must not explain each other"),
        ([make_rule("a", "b"), make_rule("b", "c"), make_rule("c", "a")], {}, "must not explain each other"),
        ([make_rule("a", "a")], {}, "The rule of A must not explain itself"),
        ([make_rule("plateau")], {"disable": ["PLATAEU"]}, "`disable` has the unknown problem 'PLATAEU'. Did you mean"),
        ([make_rule("plateau")], {"severity": {"ABC": "info"}}, "`severity` has the unknown problem 'ABC'. See"),
        ([make_rule("plateau")], {"severity": {"PLATEAU": "high"}}, "'info', 'warning' or 'critical' .* got 'high'"),
    ],
)
def test_contradictory_rules_and_unknown_names_are_refused(rules: list[Rule], settings: Any, message: str):
    with pytest.raises(ValueError, match=message):
        RuleSet(rules, **settings)


def test_a_finding_survives_as_plain_values():
    evidence = {"loss": 0.5, "name": "x"}
    finding = Finding(Problem.PLATEAU, Severity.INFO, "", 3, 9, evidence, "Wait.", ("a", "b"), "noise")
    custom = Finding("huge_initial_loss", Severity.WARNING, text="it is.", documentation="https://example.org")
    assert Finding.from_dict(json.loads(json.dumps(finding.as_dict()))) == finding
    assert Finding.from_dict(json.loads(json.dumps(custom.as_dict()))) == custom


def test_a_finding_of_version_0_1_is_read():
    values = make_finding(Problem.PLATEAU).as_dict()
    old_values = {name: value for name, value in values.items() if name not in {"text", "documentation"}}
    assert Finding.from_dict(old_values) == make_finding(Problem.PLATEAU)


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
