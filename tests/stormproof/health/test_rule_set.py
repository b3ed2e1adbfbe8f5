"""Rules are ordered by what they explain, and their findings are grouped by root cause."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from stormproof.finding import Finding, Problem, Severity
from stormproof.health.record import Record
from stormproof.health.rule import NotEnoughEvidence, Rule
from stormproof.health.rule_set import RuleSet
from stormproof.health.rules import default_rules

RULES = RuleSet(default_rules())


def make_finding(problem: str, severity: Severity = Severity.WARNING, where: str = "") -> Finding:
    return Finding(problem, severity, where, 0, 10)


def test_every_problem_has_one_rule():
    assert sorted(rule.problem for rule in default_rules()) == sorted(Problem)


def test_an_empty_record_has_no_findings():
    assert RULES.apply(Record()).findings == []


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


@pytest.mark.parametrize(("severity", "count"), [(Severity.CRITICAL, 1), (Severity.WARNING, 2)])
def test_only_a_dead_layer_explains_a_loss_of_a_constant(severity: Severity, count: int):
    findings = [make_finding(Problem.DEAD_UNITS, severity), make_finding(Problem.NO_BETTER_THAN_CONSTANT)]
    assert len(RULES.find_root_causes(findings)) == count


def make_rule(problem: str, *explains: str, severity: Severity = Severity.WARNING) -> Rule:
    """Returns a rule that reports its problem in each record after the first step."""

    def check(record: Record) -> list[Finding]:
        return [Finding(problem, severity, step=record.step, text="it is.")] if record.step else []

    return Rule(problem, check, explains=frozenset(explains))


@pytest.mark.parametrize("order", [1, -1])
def test_the_order_follows_from_what_the_rules_explain(order: int):
    rules = [make_rule("first", "second"), make_rule("second", "third"), make_rule("third"), make_rule("other")]
    rule_set = RuleSet(rules[::order])
    findings = rule_set.apply(Record(step=1)).findings
    assert [finding.problem for finding in findings] == ["first", "second", "other", "third"]
    roots = rule_set.find_root_causes(findings)
    assert [(root.problem, root.consequences) for root in roots] == [
        ("first", ("second",)),
        ("other", ()),
        ("third", ()),  # not explained by "first"
    ]


def test_a_rule_of_a_user_joins_the_default_rules():
    rule_set = RuleSet([*default_rules(), make_rule("huge_initial_loss", Problem.LOSS_SPIKE)])
    roots = rule_set.find_root_causes([make_finding(Problem.LOSS_SPIKE), *rule_set.apply(Record(step=1)).findings])
    assert [(root.code, root.consequences) for root in roots] == [("HUGE_INITIAL_LOSS", ("loss_spike",))]
    assert str(roots[0]) == "warning: HUGE_INITIAL_LOSS  It is."


@pytest.mark.parametrize("name", ["PLATEAU", "plateau", Problem.PLATEAU])
def test_a_disabled_rule_reports_nothing(name: str):
    rule_set = RuleSet([make_rule(Problem.PLATEAU), make_rule("other")], disable={name})
    assert [finding.problem for finding in rule_set.apply(Record(step=1)).findings] == ["other"]


@pytest.mark.parametrize(("name", "severity"), [("OVERFITTING", "info"), ("overfitting", "CRITICAL")])
def test_the_severity_of_a_problem_can_be_set(name: str, severity: str):
    rule_set = RuleSet([make_rule(Problem.OVERFITTING), make_rule("other")], severity={name: severity})
    roots = rule_set.find_root_causes(rule_set.apply(Record(step=1)).findings)
    assert {root.problem: root.severity for root in roots} == {"overfitting": severity.lower(), "other": "warning"}


def test_severities_and_disabled_rules_also_apply_to_findings_of_a_checkpoint():
    rule_set = RuleSet(
        default_rules(), disable={"PLATEAU"}, severity={"OVERFITTING": "critical", "NO_GRADIENT": "info"}
    )
    resolved = replace(make_finding(Problem.OVERFITTING, Severity.INFO), evidence={"until_step": 9.0})
    findings = [make_finding(problem) for problem in (Problem.PLATEAU, Problem.OVERFITTING, Problem.NO_GRADIENT)]
    roots = rule_set.find_root_causes([*findings, resolved])
    assert [(root.problem, root.severity) for root in roots] == [
        ("overfitting", "critical"), ("no_gradient", "info"), ("overfitting", "info"),
    ]  # fmt: skip


@pytest.mark.parametrize(("severity", "count"), [(Severity.INFO, 1), (Severity.WARNING, 0)])
def test_while_a_problem_is_obsolete_only_info_is_reported(severity: Severity, count: int):
    rule_set = RuleSet([replace(make_rule("first", severity=severity), is_obsolete=lambda record: record.step > 5)])
    diagnosis = rule_set.apply(Record(step=5))
    assert (len(diagnosis.findings), diagnosis.obsolete_problems) == (1, [])
    diagnosis = rule_set.apply(Record(step=6))
    assert (len(diagnosis.findings), diagnosis.obsolete_problems) == (count, ["first"])


def fail(record: Record) -> Any:
    raise ZeroDivisionError("of its own")


@pytest.mark.parametrize(
    ("check", "message"),
    [
        (fail, r"The rule for FAULTY failed with ZeroDivisionError: of its own \(in fail, test_rule_set.py line \d+\)"),
        (
            lambda record: None,
            "The rule for FAULTY failed with TypeError: its function returned None instead of findings",
        ),
        (lambda record: [Finding("faulty", Severity.INFO, where=3)], "`where` must be a string, got 3"),
        (lambda record: [Finding("faulty", Severity.INFO, step="x")], "invalid literal for int"),
        (lambda record: [make_finding(Problem.PLATEAU)], "its finding is about PLATEAU"),
    ],
)
def test_a_rule_that_fails_is_left_out_and_the_others_continue(check: Any, message: str):
    rule_set = RuleSet([Rule("faulty", check), make_rule("other")])
    with pytest.warns(UserWarning, match=message):
        assert [finding.problem for finding in rule_set.apply(Record(step=1)).findings] == ["other"]
    assert [finding.problem for finding in rule_set.apply(Record(step=2)).findings] == ["other"]
    assert rule_set.failed_problems == ["faulty"]


def test_a_page_of_the_finding_or_of_the_rule_is_linked():
    finding = make_finding(Problem.PLATEAU)
    assert finding.url == Problem.PLATEAU.url
    of_finding = replace(finding, documentation="https://example.org/finding")
    for rule, url in (
        (Rule(Problem.PLATEAU, lambda record: [of_finding]), "https://example.org/finding"),
        (Rule(Problem.PLATEAU, lambda record: [of_finding], documentation="https://a.org"), "https://a.org"),
        (Rule(Problem.PLATEAU, lambda record: [finding], documentation="javascript:alert(1)"), Problem.PLATEAU.url),
    ):
        (reported,) = RuleSet([rule]).apply(Record()).findings
        assert reported.url == url


@pytest.mark.parametrize(
    ("rules", "settings", "message"),
    [
        ([make_rule("a"), make_rule("a")], {}, "contains two rules for A. Remove one"),
        ([make_rule("a", "b"), make_rule("b", "a")], {}, "must not explain themselves or each other: A, B."),
        ([make_rule("a", "b"), make_rule("b", "c"), make_rule("c", "a")], {}, "each other: A, B, C."),
        ([make_rule("a", "a")], {}, "must not explain themselves or each other: A."),
        ([make_rule("a", "plataeu")], {}, "`explains` of the rule for A contains the unknown .*mean PLATEAU"),
        ([make_rule("plateau")], {"disable": ["PLATAEU"]}, "`disable` contains the unknown problem 'PLATAEU'. Did you"),
        ([], {"severity": {"ABC": "info"}}, "`severity` contains the unknown problem 'ABC'. stormproof.Problem lists"),
        ([], {"severity": {"PLATEAU": "high"}}, "'info', 'warning' or 'critical' .* got 'high'"),
        ([], {"disable": "PLATEAU"}, "`disable` must be a set or a list, got 'PLATEAU'"),
        ([make_rule("plateau")], {"disable": None}, "`disable` must be a set or a list, got None"),
        ([], {"severity": "info"}, "`severity` must be a mapping or None, got 'info'"),
        ([fail], {}, "`rules` must contain objects of the class stormproof.Rule, got <function"),
        (default_rules, {}, "`rules` must be a list, got <function"),
    ],
)
def test_contradictory_rules_and_unknown_names_are_refused(rules: Any, settings: Any, message: str):
    with pytest.raises((ValueError, TypeError), match=message):
        RuleSet(rules, **settings)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("HugeLoss", fail), "snake case.* got 'HugeLoss'"),
        (("huge loss", fail), "snake case.* got 'huge loss'"),
        (("huge_loss", fail, {"LOSS_SPIKE"}), "snake case.* got 'LOSS_SPIKE'"),
        ((None, fail), "snake case.* got None"),
        (("huge_loss", None), "`check` must be a function, got None"),
        (("huge_loss", fail, set(), True), "`is_obsolete` must be a function, got True"),
        (
            ("huge_loss", fail, set(), None, "", {"loss"}),
            "unknown topic 'loss'. Known topics: data, ",
        ),
    ],
)
def test_a_rule_with_an_invalid_name_or_function_is_refused(arguments: Any, message: str):
    with pytest.raises((ValueError, TypeError), match=message):
        Rule(*arguments)


def test_a_subclass_can_be_a_rule():
    class HugeLoss(Rule):
        def __init__(self) -> None:
            super().__init__("huge_loss", self.find, explains=[Problem.LOSS_SPIKE])

        def find(self, record: Record) -> list[Finding]:
            return [make_finding("huge_loss")]

    assert [finding.code for finding in RuleSet([*default_rules(), HugeLoss()]).apply(Record()).findings] == [
        "HUGE_LOSS"
    ]


def test_the_step_of_the_report_is_set_and_steps_are_plain_integers():
    finding = Finding("own", Severity.INFO, since_step=np.int64(2), step=torch.tensor(3))
    assert (type(finding.since_step), type(finding.step)) == (int, int)
    rules = RuleSet(
        [
            Rule("own", lambda record: [finding]),
            Rule("other", lambda record: [replace(finding, problem="other", step=0)]),
        ]
    )
    assert [reported.step for reported in rules.apply(Record(step=7)).findings] == [7, 3]


def test_a_finding_does_not_explain_itself():
    texts = [
        replace(make_finding("own", severity), text=f"{severity}.") for severity in (Severity.INFO, Severity.WARNING)
    ]
    (root,) = RuleSet([make_rule("own")], severity={"OWN": "critical"}).find_root_causes(texts)
    assert (root.text, root.consequences) == ("warning.", ())


@pytest.mark.parametrize("value", [np.float32(0.5), np.array(0.5), torch.tensor([0.5]), np.int64(3), True])
def test_evidence_is_converted_to_plain_numbers(value: Any):
    finding = Finding("own", Severity.INFO, evidence={"value": value})
    assert type(finding.evidence["value"]) is float
    assert finding.description == f"own since step 0 (value {float(value):.3g})."


@pytest.mark.parametrize("value", [np.arange(3), None, [1.0], {"a": 1}, torch.ones(2)])
def test_evidence_that_no_checkpoint_can_hold_is_refused(value: Any):
    with pytest.raises(TypeError, match=r"`evidence\['value'\]` must be a number or a string, got"):
        Finding("own", Severity.INFO, evidence={"value": value})


def test_a_finding_survives_as_plain_values():
    evidence = {"loss": 0.5, "name": "x"}
    finding = Finding(Problem.PLATEAU, Severity.INFO, "", 3, 9, evidence, "Wait.", ("a", "b"), "noise")
    custom = Finding("huge_initial_loss", Severity.WARNING, text="it is.", documentation="https://example.org")
    assert Finding.from_dict(json.loads(json.dumps(finding.as_dict()))) == finding
    assert Finding.from_dict(json.loads(json.dumps(custom.as_dict()))) == custom


def test_findings_of_earlier_and_later_versions_are_read():
    values = make_finding(Problem.PLATEAU).as_dict()
    new_values = {**values, "a_field_of_a_later_version": 1}
    assert Finding.from_dict(new_values) == make_finding(Problem.PLATEAU)
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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"missing": None}, "`missing` must be a text such as .*, got None"),
        ({"missing": ""}, "`missing` must be a text such as .*, got ''"),
        ({"missing": "3 steps", "is_likely": "no"}, "`is_likely` must be True or False, got 'no'"),
    ],
)
def test_missing_evidence_of_a_wrong_type_is_refused(arguments: Any, message: str):
    with pytest.raises(TypeError, match=message):
        NotEnoughEvidence(**arguments)


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ("text", "yielded 't' instead of a Finding or NotEnoughEvidence"),
        ([None], "yielded None instead of a Finding or NotEnoughEvidence"),
        (make_finding("own"), "returned a Finding instead of findings"),
    ],
)
def test_other_results_of_a_rule_are_named(result: Any, message: str):
    rules = RuleSet([Rule("own", lambda _: result)])
    with pytest.warns(UserWarning, match=message):
        rules.apply(Record(step=1))
    assert rules.failed_problems == ["own"]


def test_an_info_finding_that_repeats_a_warning_is_left_out():
    warning = Finding(Problem.DEAD_UNITS, Severity.WARNING, "layer")
    others = [replace(warning, severity=Severity.INFO, where=where) for where in ("layer", "other")]
    assert RuleSet(default_rules()).find_root_causes([warning, *others]) == [warning, others[1]]
