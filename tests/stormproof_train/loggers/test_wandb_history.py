import math
from pathlib import Path
from typing import Any

import pytest
import wandb

from stormproof_train.loggers import wandb_history
from stormproof_train.loggers.wandb_history import WandbHistory
from stormproof_train.run.metrics_file import MetricsFile


class FakeRun:
    """Keeps what a W&B run is told."""

    offline = True

    def __init__(self) -> None:
        self.rows: list[tuple[int, dict[str, Any]]] = []
        self.defined: dict[str, dict[str, Any]] = {}
        self.summary: dict[str, Any] = {}

    def define_metric(self, name: str, **options: Any) -> None:
        self.defined[name] = options

    def log(self, row: dict[str, Any], step: int) -> None:
        self.rows.append((step, row))


@pytest.fixture
def run() -> FakeRun:
    return FakeRun()


def test_every_row_carries_the_step_which_is_the_axis_of_all_else(run: FakeRun):
    WandbHistory(run).log_metrics({"units/dead_fraction": 0.5}, step=7)
    assert run.rows == [(7, {"units/dead_fraction": 0.5, "step": 7})]
    assert run.defined["*"] == {"step_metric": "step"}
    assert run.defined["step"]["hidden"]
    assert run.defined["epoch"]["hidden"]


def test_the_summary_has_the_best_and_the_last_of_a_tasks_metrics_alone(run: FakeRun):
    logger = WandbHistory(run)
    for step, value in enumerate([0.5, 0.9, 0.7]):
        logger.log_metrics(
            {"val/accuracy": value, "val/loss": value, "test/loss": value, "gradients/norm": value}, step
        )
    assert run.summary == {"val/accuracy": {"best": 0.9, "last": 0.7}, "val/loss": {"best": 0.5, "last": 0.7}}
    logger.log_metrics({"val/loss": math.nan}, step=3)
    assert run.summary["val/loss"] == {"best": 0.5, "last": pytest.approx(math.nan, nan_ok=True)}
    assert run.defined["val/loss"] == {"step_metric": "step", "summary": "none"}
    assert "test/loss" not in run.defined


def test_a_table_belongs_to_the_row_before(run: FakeRun):
    logger = WandbHistory(run)
    logger.log_metrics({"a": 1.0}, step=7)
    logger.log_metrics({"findings": "a table"})
    logger.log_metrics({"a": 2.0}, step=7)
    assert [(step, row["step"]) for step, row in run.rows] == [(7, 7)] * 3


@pytest.fixture
def metrics(tmp_path: Path) -> Path:
    """Of an attempt that came to step 30."""
    file = MetricsFile(tmp_path / "metrics.csv", attempt=1)
    for step, value in {10: 0.8, 20: 0.9, 30: 0.95}.items():
        file.log_metrics({"val/accuracy": value, "epoch": 0}, step)
    file.finalize("success")
    return tmp_path / "metrics.csv"


def test_what_is_missing_is_sent_and_what_is_there_counts_for_the_best(run: FakeRun, metrics: Path):
    logger = WandbHistory(run, last_sent_step=10)
    logger.send_missing_rows(metrics, resume_step=30)
    assert [step for step, _ in run.rows] == [20]
    assert run.summary["val/accuracy"] == {"best": 0.9, "last": 0.9}
    logger.log_metrics({"val/accuracy": 0.5, "recovery/restarts": 1.0}, step=10)
    assert len(run.rows) == 1
    logger.log_metrics({"val/accuracy": 0.6}, step=30)
    assert run.rows[-1] == (30, {"val/accuracy": 0.6, "recovery/restarts": 1.0, "step": 30})
    assert run.summary["val/accuracy"] == {"best": 0.9, "last": 0.6}


def test_steps_that_are_done_again_count_for_the_best_too(run: FakeRun):
    logger = WandbHistory(run, last_sent_step=30)
    logger.log_metrics({"val/accuracy": 0.99}, step=20)
    logger.log_metrics({"val/accuracy": 0.6}, step=40)
    assert [step for step, _ in run.rows] == [40]
    assert run.summary["val/accuracy"] == {"best": 0.99, "last": 0.6}


def test_what_comes_behind_the_last_row_that_is_there_has_a_row_of_its_own(run: FakeRun):
    logger = WandbHistory(run, last_sent_step=40)
    logger.log_metrics({"test/accuracy": 0.9}, step=40)
    logger.log_metrics({"test/roc": "a chart"})
    assert run.rows == [(41, {"test/accuracy": 0.9, "test/roc": "a chart", "step": 40})]


def test_a_server_that_is_gone_when_a_table_comes_is_a_warning(run: FakeRun, monkeypatch: pytest.MonkeyPatch):
    def refuses(row: dict[str, Any], step: int) -> None:
        raise wandb.errors.CommError("nobody answers")

    monkeypatch.setattr(run, "log", refuses)
    with pytest.warns(UserWarning, match=r"^W&B did not receive a part of the run: nobody answers$"):
        WandbHistory(run).log_metrics({"findings": "a table"})


@pytest.mark.parametrize(("finished", "expected"), [(True, [["newest"]]), (False, [])])
def test_a_finished_run_sends_its_checkpoints_whatever_came_of_its_test(
    finished: bool, expected: list[list[str]], run: FakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    sent: list[list[str]] = []
    monkeypatch.setattr(wandb_history, "sort_best_first", lambda recovery: ["newest", "older"])
    monkeypatch.setattr(wandb_history, "upload_checkpoints", lambda run, checkpoints: sent.append(checkpoints))
    recovery: Any = object()
    WandbHistory(run, checkpoints=1).upload_results(
        recovery, tmp_path if finished else None
    )  # no evaluation.json is there
    assert sent == expected


def test_what_goes_wrong_at_the_end_is_said_and_costs_nothing(
    run: FakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    def fails(folder: Path) -> None:
        raise ValueError("W&B has changed")

    monkeypatch.setattr(wandb_history, "build_charts", fails)
    WandbHistory(run).upload_results(None, tmp_path)
    assert capsys.readouterr().out == (
        "warning: W&B did not receive all results of the run: ValueError('W&B has changed')\n"
    )
