import json
import math
import signal
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from stormproof_train.cli.sweep import SweepTable, forward_preemption_to_launcher, print_results
from stormproof_train.errors import PreemptedError

HIGHER = {"accuracy": True, "rmse": False}


def _finished(word: str, headline: str, value: float) -> dict[str, Any]:
    scores = {headline: value}
    summary = {"headline": headline, "higher_is_better": HIGHER[headline], "validation": scores, "test": scores}
    return {"overrides": [word, "seed=1"], "sentence": None, "summary": {**summary, "seconds": 1.0, "name": "a-run"}}


def _failed(word: str) -> dict[str, Any]:
    return {"overrides": [word, "seed=1"], "sentence": "it is wrong", "summary": None}


def _order(printed: str) -> list[str]:
    return [line.split("│")[1].strip() for line in printed.splitlines() if line.startswith("│")]


def test_the_best_on_validation_is_first_and_what_failed_is_last(capsys: pytest.CaptureFixture[str]):
    accuracies = {"x=1": 0.5, "x=2": 0.9, "x=3": math.nan}
    print_results([_failed("x=0"), *(_finished(word, "accuracy", value) for word, value in accuracies.items())])
    output = capsys.readouterr().out
    assert _order(output) == ["x=2", "x=1", "x=3", "x=0"]
    assert "4 runs, best on validation first" in output
    assert "it is wrong" in output


def test_runs_of_two_tasks_are_ranked_apart_each_by_its_own_metric(capsys: pytest.CaptureFixture[str]):
    print_results(
        [
            _finished("data=diabetes", "rmse", 55.0),
            _finished("data=digits", "accuracy", 0.5),
            _failed("data=csv"),
            _finished("data=other", "rmse", 0.000123456),
        ]
    )
    classes, numbers = capsys.readouterr().out.split("best on validation first")[1:]
    assert "validation accuracy" in classes
    assert _order(classes) == ["data=digits"]
    assert "validation rmse" in numbers
    assert _order(numbers) == ["data=other", "data=diabetes", "data=csv"]
    assert "0.0001235" in numbers


def test_where_no_job_was_tested_the_table_is_of_validation_alone(capsys: pytest.CaptureFixture[str]):
    first_job, second_job = (_finished(word, "accuracy", value) for word, value in {"x=1": 0.5, "x=2": 0.9}.items())
    first_job["summary"]["test"] = {}
    print_results([first_job, second_job, _failed("x=0")])
    assert "test accuracy" in capsys.readouterr().out
    second_job["summary"]["test"] = {}
    print_results([first_job, second_job, _failed("x=0")])
    output = capsys.readouterr().out
    assert _order(output) == ["x=2", "x=1", "x=0"]
    assert "validation accuracy" in output
    assert "test" not in output


def test_a_sweep_of_failures_alone_is_one_table(capsys: pytest.CaptureFixture[str]):
    print_results([_failed("x=1"), _failed("x=2")])
    assert _order(capsys.readouterr().out) == ["x=1", "x=2"]


def test_a_launcher_that_answers_a_signal_is_told_of_it_once_the_run_has_left():
    def leave() -> None:
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        raise PreemptedError("stopped by SIGUSR2 at step 7", signal.SIGUSR2)

    messages = []
    before = signal.signal(signal.SIGUSR2, lambda number, frame: messages.append(number))
    try:
        with pytest.raises(PreemptedError), forward_preemption_to_launcher():
            leave()
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert messages == [signal.SIGUSR2]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_where_no_launcher_answers_the_run_just_leaves(number: signal.Signals):
    with pytest.raises(PreemptedError), forward_preemption_to_launcher():
        raise PreemptedError(f"stopped by {number.name} at step 7", number)


def test_the_table_leaves_out_jobs_whose_result_is_damaged(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    result = {**_finished("x=1", "accuracy", 0.5), "code": 0}
    for number, content in enumerate((json.dumps(result), "", "[1]", json.dumps(result)[:40])):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "result.json").write_text(content)
    SweepTable().on_multirun_end(OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path)}}}))
    output = capsys.readouterr().out
    assert "1 run, best on validation first" in output
    assert output.count("result.json is damaged, so the table lacks job") == 3
