"""A summary shows the findings of a run in a console and in a notebook."""

import xml.etree.ElementTree as ET

import pytest

from stormproof.finding import Finding, Problem, Severity
from stormproof.health.summary import HealthSummary

DEAD = Finding(
    Problem.DEAD_UNITS, Severity.WARNING, "net.<1>", 7, 20, {"dead": 24.0, "units": 32.0, "from_the_start": 0.0},
    "Lower lr.", ("plateau",), "the learning rate is too high",
)  # fmt: skip
OWN = Finding("large_loss", Severity.CRITICAL, text="it is 5 & more.", documentation="javascript:alert(1)")


@pytest.mark.parametrize(
    ("findings", "steps", "headline"),
    [
        ([], 0, "No steps have been diagnosed yet."),
        ([], 1, "No problems found in 1 step."),
        ([], 1200, "No problems found in 1,200 steps."),
        ([DEAD], 1, "1 warning finding in 1 step."),
        ([DEAD], 20, "1 warning finding in 20 steps."),
        ([DEAD, OWN, DEAD], 20, "1 critical and 2 warning findings in 20 steps."),
    ],
)
def test_the_headline_counts_findings_by_severity(findings: list[Finding], steps: int, headline: str):
    summary = HealthSummary(findings, steps)
    assert repr(summary) == str(summary)
    assert str(summary).splitlines() == [headline, *map(str, findings)]
    assert f"<p>{headline}</p>" in summary._repr_html_()


def test_a_notebook_shows_a_table_with_links_and_escapes_all_texts():
    html = HealthSummary([DEAD, OWN], 20)._repr_html_()
    root = ET.fromstring(f"<div>{html}</div>")
    rows = [["".join(cell.itertext()) for cell in row] for row in root.iter("tr")]
    assert rows == [
        ["severity", "finding", "place", "evidence", "cause and advice"],
        ["warning", "DEAD_UNITS", "net.<1>", "24 of 32 units are dead since step 7 (0 at initialization).",
         "Likely cause: the learning rate is too high. Lower lr. Explains: plateau."],
        ["critical", "LARGE_LOSS", "", "It is 5 & more.", ""],
    ]  # fmt: skip
    assert [link.get("href") for link in root.iter("a")] == [Problem.DEAD_UNITS.url]


def test_a_diagnosis_that_failed_is_not_called_healthy():
    summary = HealthSummary([], 35, has_failed=True)
    assert str(summary) == "No problems found in 35 steps. An internal error ended the diagnosis there."


def test_rules_that_failed_are_named():
    summary = HealthSummary([DEAD], 35, failed_problems=["large_loss", "plateau"])
    assert summary.headline == "1 warning finding in 35 steps. Rules that failed: LARGE_LOSS, PLATEAU."


def test_missing_evidence_is_listed_and_folded_in_a_notebook():
    summary = HealthSummary([], 35, missing_evidence={"plateau": "9 epochs (has <3)", "overfitting": "3 passes"})
    lines = ["PLATEAU needs 9 epochs (has <3)", "OVERFITTING needs 3 passes"]
    title = "Not enough evidence for 2 of the problems:"
    assert str(summary).splitlines() == ["No problems found in 35 steps.", title, *(f"  {line}" for line in lines)]
    root = ET.fromstring(f"<div>{summary._repr_html_()}</div>")
    assert [item.text for item in root.iter("li")] == lines
    assert [item.text for item in root.iter("summary")] == ["Not enough evidence for 2 of the problems"]


def test_rules_that_lack_the_same_evidence_share_a_line():
    summary = HealthSummary([], 35, missing_evidence=dict.fromkeys(("plateau", "loss_spike"), "9 epochs"))
    assert str(summary).splitlines()[2:] == ["  PLATEAU, LOSS_SPIKE need 9 epochs"]
