"""``scripts/case.py`` measures, compares and selects; the docs contain its results."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from case_ladder import BASELINE, ladder
from case_report import AIMS, Measurement, also_changed, best_sum, draw, mean, measure, render
from scipy import stats

from stormproof_train.config.overrides import normalize_overrides
from tests.support.hydra_configs import compose_plan


def _make_measurement(test: float, validation: float, train: float = 0.9) -> Measurement:
    accuracy = {"train": train, "validation": validation, "test": test}
    return Measurement(100, 60.0, accuracy, dict.fromkeys(accuracy, 0.5), dict.fromkeys(accuracy, 0.1))


@pytest.mark.slow
@pytest.mark.parametrize("data", AIMS)
def test_every_row_is_a_command_that_fits(data: str):
    rows = ladder(data)
    assert len(rows) >= 12
    assert len({row.name for row in rows}) == len({row.overrides for row in rows}) == len(rows)
    for row in rows:
        plan = compose_plan(*normalize_overrides(row.overrides))
        assert plan.data.path.rpartition(".")[2].lower() == data.replace("_", "")


@pytest.mark.slow
@pytest.mark.parametrize("data", AIMS)
def test_what_the_sums_have_otherwise_is_told_from_the_configs(data: str):
    baseline, best = (compose_plan(f"experiment=case/{data}{end}") for end in ("", "_best"))
    lr, decay = ([plan.optimizer.arguments()[name] for plan in (best, baseline)] for name in ("lr", "weight_decay"))
    epochs = [plan.trainer.arguments()["max_epochs"] for plan in (best, baseline)]
    changed_settings = zip(
        ("optimizer.lr", "optimizer.weight_decay", "trainer.max_epochs"), (lr, decay, epochs), strict=True
    )
    assert also_changed(ladder(data)) == ", ".join(
        f"{name} {new} (baseline: {old})" for name, (new, old) in changed_settings
    )


def test_a_mean_has_students_interval():
    values = [0.1, 0.4, 0.2, 0.35, 0.3]
    low, high = stats.t.interval(0.95, 4, np.mean(values), stats.sem(values))
    interval = mean(values)
    assert (interval.value - interval.half_width, interval.value + interval.half_width) == pytest.approx((low, high))
    assert mean([0.5, 0.6]).percent() == "55.0 ± 63.5"


def test_the_best_sum_is_chosen_on_validation_and_not_on_test():
    rows = ladder("mnist1d")
    sums = [row.name for row in rows if row.is_sum]
    measured = {
        row.name: [_make_measurement(test=0.5, validation=0.99)] * 2 for row in rows
    }  # no single change is a sum
    for index, name in enumerate(sums):
        measured[name] = [_make_measurement(test=0.9 - 0.1 * index, validation=0.5 + 0.1 * index)] * 2
    assert best_sum(rows, measured) == sums[-1]


def test_a_run_is_measured_by_its_predictions(tmp_path: Path):
    logits = np.log(np.array([[0.8, 0.2], [0.6, 0.4], [0.3, 0.7], [0.9, 0.1]], dtype=np.float32))
    labels = {"train": [0, 0, 1, 0], "validation": [0, 1, 1, 0], "test": [1, 1, 1, 0]}
    arrays = {f"{split}_labels": np.array(values) for split, values in labels.items()}
    np.savez(tmp_path / "predictions.npz", **arrays, **{f"{split}_logits": logits for split in labels})
    (tmp_path / "summary.json").write_text(json.dumps({"parameters": 7, "seconds": 3.0}))
    measurement = measure(tmp_path)
    assert measurement.accuracy == {"train": 1.0, "validation": 0.75, "test": 0.5}
    assert measurement.gap == 0.5
    assert measurement.nll["test"] == pytest.approx(-math.log(0.2 * 0.4 * 0.7 * 0.9) / 4)
    # each sample is in a bin of its own: |confidence - hit|, on average
    assert measurement.ece["test"] == pytest.approx((0.8 + 0.6 + 0.3 + 0.1) / 4, abs=1e-6)
    assert (measurement.parameters, measurement.seconds) == (7, 3.0)


@pytest.mark.slow
def test_the_page_says_what_was_reached_and_compares_in_pairs(tmp_path: Path):
    rows = ladder("mnist1d")
    measured = {row.name: [_make_measurement(0.60 + 0.01 * seed, 0.6) for seed in range(4)] for row in rows}
    best = next(row.name for row in rows if row.is_sum)
    measured[best] = [_make_measurement(0.97 + 0.01 * seed * (-1) ** seed, 0.98, train=0.98) for seed in range(4)]
    page = render("mnist1d", rows, measured, "figure.svg", "by hand")
    table = [line for line in page.splitlines() if line.startswith("| ")]
    assert len(table) == len(rows) + 2
    gained = [
        measurement_best.accuracy["test"] - measurement_baseline.accuracy["test"]
        for measurement_best, measurement_baseline in zip(measured[best], measured[BASELINE], strict=True)
    ]
    p = stats.ttest_rel(
        *([measurement.accuracy["test"] for measurement in measured[name]] for name in (best, BASELINE))
    ).pvalue
    (line,) = [measurement for measurement in table if best in measurement]
    assert f"+{100 * np.mean(gained):.1f} ± " in line
    assert f"{p:.1g}" in line
    assert "| 98.0 ± 0.0 | 96.5 ± " in line  # validation before test
    assert f"**{best}** is the combination with the highest validation accuracy" in page
    assert page.count("reached") == page.count("not reached") + 1
    for folder in ("one", "other"):
        (tmp_path / folder).mkdir()
        draw(rows, measured, tmp_path / folder / "figure.svg")
    drawn = [(tmp_path / folder / "figure.svg").read_text() for folder in ("one", "other")]
    assert all(f"<!-- {row.name} -->" in drawn[0] for row in rows)
    assert drawn[0] == drawn[1]  # a rerun changes nothing that was not measured anew
