"""Findings in the file and in Weights & Biases."""

import json
from pathlib import Path
from typing import Any

import pytest

from stormproof.finding import Finding, Problem, Severity
from stormproof.health.publishing import COLUMNS, append_finding, log_table, send_alert

DEAD = Finding(
    Problem.DEAD_UNITS,
    Severity.WARNING,
    "net.1",
    3,
    20,
    {"dead": 24.0, "units": 32.0},
    "Lower lr.",
    ("loss_spike",),
    "the learning rate is too high",
)
FROZEN = Finding(Problem.NO_GRADIENT, Severity.INFO, "net.0", 0, 1)


class Run:
    def __init__(self) -> None:
        self.alerts: list[dict[str, str]] = []

    def alert(self, **arguments: str) -> None:
        self.alerts.append(arguments)


class WandbLogger:
    """Has the name of the logger of both Lightning packages, which need not be installed."""

    def __init__(self) -> None:
        self.experiment = Run()
        self.tables: list[tuple[str, list[str], list[Any]]] = []

    def log_table(self, key: str, columns: list[str], data: list[Any]) -> None:
        self.tables.append((key, columns, data))


class OwnLogger(WandbLogger):
    """A user's subclass."""


@pytest.mark.parametrize("kind", [WandbLogger, OwnLogger])
def test_an_alert_is_sent_for_warnings_but_not_for_info(kind: type[WandbLogger]):
    logger = kind()
    for finding in (DEAD, FROZEN):
        send_alert([object(), logger], finding)
    assert logger.experiment.alerts == [
        {"title": "DEAD_UNITS", "text": f"{DEAD} See {Problem.DEAD_UNITS.url}", "level": "WARN"}
    ]


def test_the_table_has_a_row_for_each_finding():
    logger = WandbLogger()
    log_table([object(), logger], [DEAD, FROZEN])
    ((key, columns, rows),) = logger.tables
    assert (key, columns) == ("findings", COLUMNS)
    assert rows == [
        [
            "warning", "dead_units", "net.1", 3, 20, "dead 24.0, units 32.0",
            "the learning rate is too high", "Lower lr.", "loss_spike",
        ],
        ["info", "no_gradient", "net.0", 0, 1, "", "", "", ""],
    ]  # fmt: skip


def test_without_findings_there_is_no_table():
    logger = WandbLogger()
    log_table([logger], [])
    assert logger.tables == []


@pytest.mark.parametrize("cut", [0, 1, 30])
def test_a_truncated_line_does_not_affect_other_lines(tmp_path: Path, cut: int):
    file = tmp_path / "run" / "findings.jsonl"
    append_finding(file, DEAD)
    file.write_bytes(file.read_bytes() + json.dumps(DEAD.as_dict()).encode()[:cut])
    append_finding(file, FROZEN)
    lines = file.read_text().splitlines()
    assert [Finding.from_dict(json.loads(line)) for line in (lines[0], lines[-1])] == [DEAD, FROZEN]
    assert len(lines) == (2 if cut == 0 else 3)


def test_a_line_is_standard_json_also_for_nan_and_infinity(tmp_path: Path):
    evidence = {"loss": float("inf"), "constant": float("-inf"), "gradient": float("nan"), "unit": "nan", "lr": 0.5}
    append_finding(tmp_path / "findings.jsonl", Finding("huge_loss", Severity.WARNING, evidence=evidence))

    def refuse(name: str) -> None:
        raise AssertionError(name)

    values = json.loads((tmp_path / "findings.jsonl").read_text(), parse_constant=refuse)
    assert values["version"] == 1
    assert values["evidence"] == {
        "loss": "Infinity", "constant": "-Infinity", "gradient": "NaN", "unit": "nan", "lr": 0.5,
    }  # fmt: skip
    restored = Finding.from_dict(values)
    assert (restored.evidence["loss"], restored.evidence["constant"]) == (float("inf"), float("-inf"))
    assert repr(restored.evidence["gradient"]) == "nan"
    assert restored.evidence["unit"] == "nan"
