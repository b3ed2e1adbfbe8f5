import dataclasses
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from stormproof_train.evaluation.comparison import compare
from stormproof_train.report.kit.page import render_html
from stormproof_train.report.run_comparison import compare_runs
from stormproof_train.report.run_files import read_run
from stormproof_train.report.several_runs import INTERVAL_AND_TEST_DISAGREE, comparison_page
from tests.support.run_folders import SETTINGS, make_predictions, training_rows, write_run


def _runs(folder: Path, scores: dict[str, float], tested: bool = True, **changes) -> list:
    return [
        read_run(
            write_run(
                folder / name, rows=training_rows(100), settings={**SETTINGS, "seed": seed, **changes},
                test={"accuracy": score, "loss": 1 - score}, tested=tested,
            )
        )
        for seed, (name, score) in enumerate(scores.items())
    ]  # fmt: skip


def test_runs_that_differ_in_their_seed_alone_have_a_mean_with_its_t_interval(tmp_path: Path):
    scores = [0.9, 0.92, 0.97]
    runs = _runs(tmp_path, dict(zip("abc", scores, strict=True)))
    runs += _runs(tmp_path / "others", {"d": 0.5}, optimizer={"_target_": "torch.optim.SGD", "lr": 0.1})
    numbers = compare_runs(runs)
    (group,) = numbers["seeds"]
    low, high = stats.t.interval(0.95, 2, sum(scores) / 3, stats.sem(scores))
    assert (group["runs"], group["count"]) == (["a", "b", "c"], 3)
    assert group["test"]["accuracy"] == pytest.approx({"mean": sum(scores) / 3, "low": low, "high": high})
    assert numbers["settings"]["seed"] == [0, 1, 2, 0]
    assert numbers["settings"]["optimizer.lr"] == [0.05, 0.05, 0.05, 0.1]
    assert list(numbers["runs"][0]["curves"]) == ["train/loss", "val/loss", "val/accuracy"]


def test_the_same_seed_twice_is_no_sample_of_seeds(tmp_path: Path):
    runs = [*_runs(tmp_path / "one", {"a": 0.9}), *_runs(tmp_path / "two", {"a": 0.9})]
    numbers = compare_runs(runs)
    assert numbers["seeds"] == []
    assert numbers["settings"] == {}
    assert [run["label"] for run in numbers["runs"]] == [str(tmp_path / "one" / "a"), str(tmp_path / "two" / "a")]


def test_of_each_seed_one_run_counts(tmp_path: Path):
    twice = _runs(tmp_path / "again", {"a": 0.8})
    (group,) = compare_runs([*_runs(tmp_path, {"a": 0.9, "b": 0.92}), *twice])["seeds"]
    assert group["count"] == 2


def test_a_run_that_has_not_finished_is_beside_the_others_and_in_no_mean(tmp_path: Path):
    runs = _runs(tmp_path, {"a": 0.9})
    runs += [read_run(write_run(tmp_path / "b", status="failed", settings={**SETTINGS, "seed": 7}))]
    numbers = compare_runs(runs)
    assert [run["summary"] is None for run in numbers["runs"]] == [False, True]
    assert numbers["seeds"] == []


def test_two_seeds_have_a_mean_without_an_interval(tmp_path: Path):
    (group,) = compare_runs(_runs(tmp_path, {"a": 0.9, "b": 0.92}))["seeds"]
    assert group["test"]["accuracy"] == {"mean": pytest.approx(0.91), "low": None, "high": None}


def test_groups_of_seeds_are_named_by_their_settings(tmp_path: Path):
    runs = _runs(tmp_path / "one", {"a": 0.9, "b": 0.92})
    runs += _runs(tmp_path / "other", {"c": 0.5, "d": 0.6}, optimizer={"_target_": "torch.optim.SGD", "lr": 0.1})
    numbers = compare_runs(runs)
    assert [group["settings"]["optimizer.lr"] for group in numbers["seeds"]] == [0.05, 0.1]
    (_, results, *_) = comparison_page(numbers).sections
    (means,) = [table for title, table in results.tables if title.startswith("Over seeds")]
    assert all("optimizer.lr=" in row[0] and "seed=" not in row[0] for row in means.rows)


def test_a_group_that_no_setting_tells_apart_is_named_by_its_runs(tmp_path: Path):
    (_, results, *_) = comparison_page(compare_runs(_runs(tmp_path, {"a": 0.9, "b": 0.92}))).sections
    assert [table.rows[0][0] for title, table in results.tables if title.startswith("Over seeds")] == ["a, b"]


def test_all_pairs_of_the_same_samples_are_compared(tmp_path: Path):
    first, second = (dataclasses.replace(make_predictions(), samples=np.arange(start, start + 60)) for start in (0, 1))
    predictions_by_run = {"a": first, "b": second, "c": first, "d": second, "e": first}
    numbers = compare_runs(
        [
            read_run(write_run(tmp_path / name, predictions=run_predictions))
            for name, run_predictions in predictions_by_run.items()
        ]
    )
    assert [pair["runs"] for pair in numbers["paired"]] == [["a", "c"], ["a", "e"], ["b", "d"], ["c", "e"]]


def test_two_runs_with_the_same_predictions_have_a_difference_without_an_interval(tmp_path: Path):
    predictions = dataclasses.replace(make_predictions(), samples=np.arange(60))
    runs = [read_run(write_run(tmp_path / name, predictions=predictions)) for name in ("a", "b")]
    (_, results, *_) = comparison_page(compare_runs(runs)).sections
    assert results.tables[-1][1].rows[0][:3] == ("a minus b", "60", "0.0000")


@pytest.mark.parametrize(
    ("low", "high", "p_value", "says"),
    [(0.01, 0.03, 0.25, True), (-0.01, 0.03, 0.01, True), (0.01, 0.03, 0.01, False), (-0.01, 0.03, 0.25, False)],
)
def test_a_note_explains_an_interval_that_disagrees_with_the_test(
    low: float, high: float, p_value: float, says: bool, tmp_path: Path
):
    numbers = compare_runs(_runs(tmp_path, {"a": 0.9, "b": 0.92}))
    difference = {"accuracy": {"value": 0.02, "low": low, "high": high}}
    test = {"only_first_correct": 3, "only_second_correct": 0, "p_value": p_value}
    numbers["paired"] = [{"runs": ["a", "b"], "samples": 60, "differences": difference, "mcnemar": test}]
    (_, results, *_) = comparison_page(numbers).sections
    assert results.sentences == ([INTERVAL_AND_TEST_DISAGREE] if says else [])


def test_pairs_of_another_metric_have_a_table_of_their_own(tmp_path: Path):
    numbers = compare_runs(_runs(tmp_path, {"a": 0.9, "b": 0.92}))
    value = {"value": 0.02, "low": 0.01, "high": 0.03}
    numbers["paired"] = [
        {"runs": ["a", "b"], "samples": 60, "differences": {name: value}} for name in ("accuracy", "rmse", "accuracy")
    ]
    (_, results, *_) = comparison_page(numbers).sections
    tables = [table for title, table in results.tables if title.startswith("On the same")]
    assert [table.head[2] for table in tables] == ["difference of accuracy", "difference of rmse"]
    assert [len(table.rows) for table in tables] == [2, 1]


def test_those_that_were_tested_on_the_same_samples_are_compared(tmp_path: Path):
    reference = dataclasses.replace(make_predictions(), samples=np.arange(60))
    better = dataclasses.replace(reference, outputs=np.eye(3)[reference.target] * 0.7 + 0.1)
    elsewhere = dataclasses.replace(reference, samples=np.arange(1, 61))
    predictions_by_run = {"one": reference, "better": better, "elsewhere": elsewhere, "unknown": make_predictions()}
    numbers = compare_runs(
        [
            read_run(write_run(tmp_path / name, predictions=run_predictions))
            for name, run_predictions in predictions_by_run.items()
        ]
    )
    (pair,) = numbers["paired"]
    assert pair == {"runs": ["one", "better"], **compare(reference, better, {"accuracy"})}
    assert pair["mcnemar"]["only_second_correct"] == (reference.classes != reference.target).sum() > 0
    page = render_html(comparison_page(numbers))
    assert "one minus better" in page
    assert f"0 : {pair['mcnemar']['only_second_correct']}" in page


def test_runs_that_were_not_tested_are_compared_by_validation_alone(tmp_path: Path):
    untested = _runs(tmp_path, {"a": 0.9, "b": 0.92}, tested=False)
    numbers = compare_runs(untested)
    (group,) = numbers["seeds"]
    assert group["test"] == {}
    assert group["validation"]["accuracy"]["mean"] == pytest.approx(0.91)
    (_, results, *_) = comparison_page(numbers).sections
    (title, table), (_, means) = results.tables
    assert title == "Each run"
    assert table.head == ["run", "status", "validation accuracy", "validation loss", "steps", "seconds"]
    assert means.head == ["settings", "n", "validation accuracy", "validation loss"]


def test_a_run_that_was_not_tested_is_beside_one_that_was(tmp_path: Path):
    runs = [*_runs(tmp_path / "one", {"a": 0.9}), *_runs(tmp_path / "other", {"b": 0.92}, tested=False)]
    (_, results, *_) = comparison_page(compare_runs(runs)).sections
    ((title, table),) = results.tables
    assert title == "Each run, with 95% intervals over the test samples"
    column = table.head.index("test accuracy")
    assert [row[column : column + 2] for row in table.rows] == [["0.9000 (0.8000 to 0.9500)", "0.9000"], ["", "0.9200"]]
