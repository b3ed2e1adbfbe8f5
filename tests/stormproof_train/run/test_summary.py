"""The summary that a finished run prints."""

import json
from pathlib import Path
from typing import Any

import pytest

from stormproof.finding import Finding, Problem, Severity
from stormproof_train import console
from stormproof_train.cli.train import print_summary
from stormproof_train.console import format_warning

SUMMARY: dict[str, Any] = {
    "name": "a-run", "test": {"accuracy": 0.9}, "validation": {"accuracy": 0.91}, "parameters": 1234, "steps": 56,
    "seconds": 7.8,
}  # fmt: skip
DEAD = Finding(Problem.DEAD_UNITS, Severity.WARNING, "network.2", 1, 20)
FROZEN = Finding(Problem.NO_GRADIENT, Severity.INFO, "network.0", 0, 1)
USELESS = Finding(Problem.NO_BETTER_THAN_CONSTANT, Severity.WARNING, "", 0, 40)
RATE = Finding(
    Problem.LEARNING_RATE_TOO_HIGH, Severity.CRITICAL, "optimizer 0", 0, 30,
    consequences=("dead_units in network.2", "no_better_than_constant"),
)  # fmt: skip
MESSAGES: dict[str, tuple[list[Finding], str | None]] = {
    "nothing": ([], None),
    "what may be meant so": ([FROZEN], None),
    "one": ([DEAD], "DEAD_UNITS in network.2"),
    "two": ([DEAD, FROZEN, USELESS], "DEAD_UNITS in network.2, NO_BETTER_THAN_CONSTANT"),
    "a cause that was found after what it explains": ([DEAD, USELESS, RATE], "LEARNING_RATE_TOO_HIGH in optimizer 0"),
    "one that was found again after a kill": ([DEAD, DEAD], "DEAD_UNITS in network.2"),
}


def printed_summary(folder: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    print_summary(SUMMARY, folder)
    return [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning")]


@pytest.mark.parametrize("case", MESSAGES)
def test_the_summary_names_active_findings(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    findings, expected = MESSAGES[case]
    (tmp_path / "findings.jsonl").write_text("".join(json.dumps(finding.as_dict()) + "\n" for finding in findings))
    line = f"warning: TrainingHealth reported {expected}. See findings.jsonl in the run folder."
    lines = [] if expected is None else [line]
    assert printed_summary(tmp_path, capsys) == lines


def test_what_was_not_tested_has_no_column_and_the_command_that_tests_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    print_summary(SUMMARY, tmp_path)
    assert "not read" not in capsys.readouterr().out
    print_summary({**SUMMARY, "test": {}, "intervals": {}}, tmp_path)
    _, _, head, _, row, *_, sentence, _ = capsys.readouterr().out.splitlines()
    assert head.strip("┃ ").split() == ["metric", "┃", "validation"]
    assert row.strip("│ ").split() == ["accuracy", "│", "0.9100"]
    assert sentence == (f"the test split was not read. To evaluate it: stormproof-train evaluate checkpoint={tmp_path}")


def test_baselines_are_columns_and_conclusions_are_lines_below_the_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    print_summary(
        {
            **SUMMARY, "baselines": {"logistic regression": {"accuracy": 0.95}, "constant": {"accuracy": 0.3}},
            "conclusions": ["The network is worse than a linear model."],
        },
        tmp_path,
    )  # fmt: skip
    _, _, head, _, row, _, sentence, *_ = capsys.readouterr().out.splitlines()
    assert head.strip("┃ ").split(" ┃ ") == ["metric  ", "  test", "logistic regression", "constant", "validation"]
    assert row.strip("│ ").split() == ["accuracy", "│", "0.9000", "│", "0.9500", "│", "0.3000", "│", "0.9100"]
    assert sentence == "The network is worse than a linear model."


def test_a_line_that_a_kill_cut_off_does_no_harm(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    line = json.dumps(DEAD.as_dict())
    (tmp_path / "findings.jsonl").write_text(f"{line}\n{line[:40]}")
    assert len(printed_summary(tmp_path, capsys)) == 1


def test_a_run_without_findings_has_no_file_of_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert printed_summary(tmp_path, capsys) == []


def test_a_warning_of_ours_is_a_sentence_and_anothers_keeps_its_place():
    our_text = format_warning("the step is skipped", UserWarning, f"{Path(console.__file__).parent}/main.py", 3)
    plain_text = format_warning("odd", UserWarning, "/home/me/stormproof/.venv/lib/torch/nn.py", 3)
    assert our_text == "warning: the step is skipped\n"
    assert plain_text.startswith("/home/me/stormproof/.venv/lib/torch/nn.py:3: UserWarning: odd")
