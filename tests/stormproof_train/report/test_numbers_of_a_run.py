import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stormproof.finding import Finding, Problem, Severity
from stormproof_train.errors import UserError
from stormproof_train.evaluation.predictions import Predictions
from stormproof_train.report.attempts import summarize_attempts
from stormproof_train.report.kit.evaluation_charts import evaluation_charts
from stormproof_train.report.kit.json_numbers import to_json
from stormproof_train.report.layers import compute_layer_cells
from stormproof_train.report.logged import read_series
from stormproof_train.report.one_run import run_page
from stormproof_train.report.run_files import read_run
from stormproof_train.report.times import step_times
from stormproof_train.report.verdict import verdict
from stormproof_train.report.write import collect_run_numbers
from stormproof_train.run.findings_file import active_findings, read_findings
from tests.support.run_folders import SETTINGS, make_predictions, training_rows, write_run

DEAD = Finding(Problem.DEAD_UNITS, Severity.WARNING, "network.2", 20, 40, {"dead": 0.9}, "lower the rate")
FINISHED = (
    "It finished after 100 steps: accuracy 0.9000 on the test split (95% interval 0.8000 to 0.9500), 0.9000 on "
    "validation."
)
PLATEAU = Finding(Problem.PLATEAU, Severity.WARNING, "", 50, 60)


def _verdict(folder: Path, **files) -> tuple[str, list[str]]:
    run_verdict = verdict(read_run(write_run(folder, **files)))
    return run_verdict["tone"], run_verdict["sentences"]


def test_a_good_run_says_how_good_and_that_nothing_was_found(tmp_path: Path):
    tone, sentences = _verdict(tmp_path / "run", rows=training_rows(100), predictions=make_predictions())
    assert tone == "good"
    assert sentences == [
        FINISHED,
        "TrainingHealth reported no problems.",
        "The network is better than always predicting the most common class (accuracy 0.3333).",
    ]


def test_of_a_run_that_was_not_tested_the_verdict_is_that_of_validation(tmp_path: Path):
    tone, sentences = _verdict(tmp_path / "run", rows=training_rows(100), tested=False)
    assert tone == "good"
    assert sentences == [
        "It finished after 100 steps: accuracy 0.9000 on validation. The test split was not used.",
        "TrainingHealth reported no problems.",
    ]


def test_no_more_is_said_than_the_files_support(tmp_path: Path):
    tone, sentences = _verdict(tmp_path / "run", settings={"seed": 0})
    assert tone == "good"
    missing = [f"{name} is missing." for name in ("predictions.npz", "evaluation.json")]
    assert sentences[1:] == ["TrainingHealth was disabled.", *missing]


@pytest.mark.parametrize(
    ("status", "attempt", "tone", "begins"),
    [
        ("failed", {"reason": "it blew up"}, "bad", "It failed at step 100: it blew up; accuracy was"),
        (
            "preempted",
            {"reason": "SIGTERM"},
            "open",
            "It was stopped at step 100: SIGTERM. The same command resumes the run",
        ),
        (
            "running",
            {"end": None},
            "open",
            "Its process is gone, without a message, at step 100. The same command resumes the run",
        ),
    ],
)
def test_a_run_that_has_not_finished_says_how_far_it_came(tmp_path: Path, status, attempt, tone, begins):
    attempts = [{"first_step": 0, "last_step": 100, **attempt}]
    run_verdict = _verdict(tmp_path / "run", rows=training_rows(100), status=status, attempts=attempts)
    assert run_verdict[0] == tone
    assert run_verdict[1][0].startswith(begins)


def test_that_the_same_command_goes_on_is_said_once(tmp_path: Path):
    reason = "stopped by SIGTERM at step 100; the same command resumes from step 100"
    attempts = [{"first_step": 0, "last_step": 100, "reason": reason}]
    _, sentences = _verdict(tmp_path / "run", rows=training_rows(100), status="preempted", attempts=attempts)
    assert sentences[0].lower().count("the same command") == 1


def test_numbers_that_are_not_finite_are_no_good_run(tmp_path: Path):
    tone, sentences = _verdict(tmp_path / "run", test={"accuracy": 0.1, "loss": math.nan})
    assert tone == "bad"
    assert "These metrics are not finite: test loss, validation loss." in sentences


def test_a_constant_that_is_as_good_makes_a_run_doubtful(tmp_path: Path):
    worthless = make_predictions()
    worthless.outputs[:] = [0.5, 0.3, 0.2]
    tone, sentences = _verdict(tmp_path / "run", predictions=worthless)
    assert tone == "doubtful"
    assert sentences[-1].startswith("The network is not clearly better than always predicting the most common class")


def test_a_linear_model_that_is_better_makes_a_run_doubtful(tmp_path: Path):
    folder = write_run(tmp_path / "run", rows=training_rows(100), predictions=make_predictions())
    evaluation = json.loads((folder / "evaluation.json").read_text())
    for low, high, tone in ((-0.2, -0.1, "doubtful"), (-0.2, 0.1, "good")):
        difference = {"metric": "accuracy", "samples": 60, "value": -0.15, "low": low, "high": high}
        linear = {"model": "logistic regression", "rows": 9, "training_rows": 9, "headline": {"accuracy": 0.99}}
        evaluation["baselines"] = {"linear": {**linear, "difference": difference}}
        (folder / "evaluation.json").write_text(json.dumps(evaluation))
        run_verdict = verdict(read_run(folder))
        assert run_verdict["tone"] == tone
        assert "logistic regression fitted on 9 training rows (accuracy 0.9900" in run_verdict["sentences"][-1]


def test_a_finding_stands_unless_it_is_explained_or_taken_back(tmp_path: Path):
    findings = [
        PLATEAU,
        Finding(Problem.LEARNING_RATE_TOO_LOW, Severity.WARNING, "", 1, 9),
        Finding(Problem.LEARNING_RATE_TOO_LOW, Severity.INFO, "", 1, 9, {"until_step": 80.0}),
        Finding.from_dict({**DEAD.as_dict(), "consequences": ("plateau",)}),
    ]
    file = tmp_path / "findings.jsonl"
    file.write_text('{"problem": "plat\n' + "".join(json.dumps(finding.as_dict()) + "\n" for finding in findings))
    assert [finding.problem for finding in active_findings(read_findings(file))] == [Problem.DEAD_UNITS]


def test_what_came_back_after_it_was_taken_back_stands(tmp_path: Path):
    back = Finding(Problem.DEAD_UNITS, Severity.INFO, "network.2", 20, 60, {"until_step": 60})
    reported_again = Finding(Problem.DEAD_UNITS, Severity.WARNING, "network.2", 80, 90, {"dead": 0.9}, "lower the rate")
    (tmp_path / "findings.jsonl").write_text(
        "".join(json.dumps(finding.as_dict()) + "\n" for finding in (DEAD, back, reported_again))
    )
    assert active_findings(read_findings(tmp_path / "findings.jsonl")) == [reported_again]


def test_a_finding_of_another_kind_is_named_with_its_line(tmp_path: Path):
    (tmp_path / "findings.jsonl").write_text('{"problem": "of tomorrow"}\n')
    with pytest.warns(UserWarning, match=r"findings.jsonl, line 1 is not a valid finding"):
        assert read_findings(tmp_path / "findings.jsonl") == []


def test_what_a_restart_did_again_is_counted(tmp_path: Path):
    attempts = [{"first_step": 0, "last_step": 70}, {"first_step": 50, "last_step": 100}, {"first_step": 100}]
    rows = [(2, 50, "recovery/seconds", 3.5)]
    run = read_run(write_run(tmp_path / "run", attempts=attempts, rows=rows))
    attempt_numbers = summarize_attempts(run.record, run.logged)
    assert [attempt["steps_done_again"] for attempt in attempt_numbers] == [None, 20, 0]
    assert [attempt["seconds_until_back"] for attempt in attempt_numbers] == [None, 3.5, None]
    assert attempt_numbers[0]["seconds"] == 60


def test_the_time_of_a_step_is_split_as_it_was_measured(tmp_path: Path):
    rows = [row for row in training_rows(300) if row[2].startswith("time/")]
    rows += [(1, 150, "checkpoint/stall_seconds", 0.02)]
    time = step_times(read_series(write_run(tmp_path / "run", rows=rows) / "metrics.csv"), {1: 1})
    assert time is not None
    # a step takes 10 ms by the clock, its batch 8 of them, a quarter of which it waits
    stalls = 0.02 / 290
    expected = {"data": 2e-3, "compute": 6e-3, "checkpoint": stalls, "other": 2e-3 - stalls}
    assert time["mean"] == pytest.approx(expected, rel=1e-5)
    assert time["starts"][1:] == time["ends"][:-1]
    assert max(time["seconds"]["checkpoint"]) == pytest.approx(2e-3)


@pytest.mark.parametrize(
    "rows", [[], training_rows(10), [*training_rows(10), *training_rows(10, attempt=2, first_step=10)]]
)
def test_a_time_that_was_not_measured_is_not_told(tmp_path: Path, rows):
    assert step_times(read_series(write_run(tmp_path / "run", rows=rows) / "metrics.csv"), {}) is None


def test_cells_of_layers_keep_extremes_and_count_what_is_not_finite(tmp_path: Path):
    rows = [(1, step, f"gradients/norm/{layer}", 1.0) for step in range(1000) for layer in ("a", "b")]
    rows += [
        (2, 500, "gradients/norm/a", 99.0),
        (2, 501, "gradients/norm/b", math.nan),
        (2, 502, "gradients/norm/b", 0.0),
    ]
    cells = compute_layer_cells(read_series(write_run(tmp_path / "run", rows=rows) / "metrics.csv"), "gradients/norm")
    assert cells is not None
    assert cells["layers"] == ["a", "b"]
    assert (len(cells["starts"]), cells["starts"][0], cells["ends"][-1]) == (120, -1, 999)
    column = next(index for index, end in enumerate(cells["ends"]) if end >= 502)
    assert (max(cells["largest"][0]), min(cells["smallest"][1]), sum(cells["non_finite"][1])) == (99.0, 0.0, 1)
    assert cells["smallest"][1][column] == 0.0


def test_the_numbers_of_a_run_are_strict_json_whatever_was_logged(tmp_path: Path):
    rows = [
        *training_rows(100),
        (1, 99, "train/loss", math.nan),
        (1, 99, "val/mine", -math.inf),
        (1, 100, "test/loss", 1.0),
    ]
    run = write_run(tmp_path / "run", rows=rows, test={"accuracy": math.nan, "loss": math.inf}, findings=[DEAD])
    (run / "unknown.bin").write_bytes(b"\xff")
    numbers = json.loads(json.dumps(to_json(collect_run_numbers(read_run(run))), allow_nan=False))
    assert numbers["summary"]["test"] == {"accuracy": "nan", "loss": "inf"}
    assert numbers["curves"]["train/loss"]["values"][-1] is None
    assert numbers["curves"]["train/loss"]["non_finite_since"] == 99
    assert numbers["findings"][0]["active"] is True
    assert set(numbers["layers"]) == {"gradients/norm", "units/dead_fraction"}
    assert "test/loss" not in numbers["curves"]


def test_the_evidence_of_a_finding_is_shown_as_curves(tmp_path: Path):
    overfitting = Finding(Problem.OVERFITTING, Severity.WARNING, "", 40, 60)
    broadcast = Finding(Problem.BROADCAST_MISMATCH, Severity.CRITICAL, "", 0, 1)
    rows = training_rows(100, layers=("network.2",))
    run = write_run(tmp_path / "run", rows=rows, findings=[DEAD, overfitting, broadcast])
    numbers = collect_run_numbers(read_run(run))
    assert [list(finding["curves"]) for finding in numbers["findings"]] == [
        ["units/dead_fraction/network.2"], ["train/loss", "val/loss"], []
    ]  # fmt: skip
    (section,) = (section for section in run_page(numbers).sections if section.title == "Findings")
    assert [chart.title for chart in section.charts] == ["DEAD_UNITS in network.2", "OVERFITTING"]


@pytest.mark.parametrize("missing", ["metrics.csv", "config.yaml", "findings.jsonl", "summary.json", "predictions.npz"])
def test_a_missing_file_costs_only_what_it_holds(tmp_path: Path, missing: str):
    run = write_run(tmp_path / "run", rows=training_rows(100), settings=SETTINGS, predictions=make_predictions())
    (run / missing).unlink()
    assert collect_run_numbers(read_run(run))["status"] == "finished"
    lost = "metrics.csv is missing, so there are no curves."
    assert (lost in verdict(read_run(run))["sentences"]) is (missing == "metrics.csv")


def test_a_folder_without_files_of_a_run_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match=r"is not the folder of a run: run.json is missing"):
        read_run(tmp_path)


@pytest.mark.parametrize(
    ("file", "content", "sentence"),
    [
        ("summary.json", b"{}", r"summary.json is damaged \(expected a mapping .* headline,"),
        ("config.yaml", b"!!python/object:os.system [ls]", "config.yaml is damaged"),
        ("predictions.npz", b"no", "contains no predictions of Stormproof"),
        ("evaluation.json", b"[]", "evaluation.json is damaged"),
        ("metrics.csv", b"\xff\xfe", "metrics.csv cannot be read as the metrics of a run"),
    ],
)
def test_the_verdict_names_damaged_files(tmp_path: Path, file: str, content: bytes, sentence: str):
    run = write_run(tmp_path / "run", predictions=make_predictions())
    (run / file).write_bytes(content)
    assert any(re.search(sentence, line) for line in verdict(read_run(run))["sentences"])


@pytest.mark.slow
@pytest.mark.parametrize("samples", [50, 2500])
def test_residuals_are_drawn_of_samples_spread_over_the_split(tmp_path: Path, samples: int):
    target = np.linspace(0, 1, 2 * samples).reshape(samples, 2)
    saved_predictions = Predictions("values", target - [0.5, -0.25], target)
    test = {"rmse": 0.4, "loss": 0.2}
    evaluation = collect_run_numbers(read_run(write_run(tmp_path / "run", predictions=saved_predictions, test=test)))[
        "evaluation"
    ]
    first, second = evaluation["residuals_by_prediction"]
    assert len(first["x"]) == len(second["y"]) == min(samples, 834)
    assert set(first["y"]) == {0.5}
    assert set(second["y"]) == {-0.25}
    residual_chart = next(chart for chart in evaluation_charts(evaluation) if chart.title == "Residuals by prediction")
    assert len(residual_chart.data["points"]["x"]) == 2 * len(first["x"])


def test_a_skipped_checkpoint_is_named_with_its_attempt(tmp_path: Path):
    attempts = [{"first_step": 0, "last_step": 40}, {"first_step": 20, "skipped": {"000003-step-40": "it has 7 bytes"}}]
    numbers = collect_run_numbers(read_run(write_run(tmp_path / "run", attempts=attempts)))
    assert [entry["skipped"] for entry in numbers["attempts"]] == [{}, {"000003-step-40": "it has 7 bytes"}]
    (section,) = (entry for entry in run_page(numbers).sections if entry.title == "Attempts")
    assert "Attempt 2 skipped checkpoint 000003-step-40: it has 7 bytes." in section.sentences


@pytest.mark.parametrize(("recorded", "key"), [(None, "optimizer.lr"), ([{"key": "seed", "value": 3}], "seed")])
def test_changed_settings_are_those_that_the_run_recorded_or_else_those_of_its_config(
    recorded: list[dict[str, Any]] | None, key: str, tmp_path: Path
):
    settings = {"optimizer": {"_target_": "torch.optim.AdamW", "lr": 0.05}}
    run = write_run(tmp_path / "run", settings=settings, changed=recorded)
    assert [change["key"] for change in collect_run_numbers(read_run(run))["changed"]] == [key]
