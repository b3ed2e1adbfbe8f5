from typing import Any

import pytest

from stormproof_train.evaluation.conclusions import compare_with_linear, conclusions


def make_evaluation(low: float | None, high: float | None, rows: int = 266) -> dict[str, Any]:
    difference = {"metric": "r2", "samples": 88, "value": -0.25, "low": low, "high": high}
    linear = {
        "model": "ridge regression", "rows": rows, "training_rows": 266, "headline": {"r2": 0.35},
        "difference": difference,
    }  # fmt: skip
    return {
        "headline": {"r2": {"value": 0.1, "low": -0.4, "high": 0.4}},
        "baselines": {"linear": linear, "constant": {"headline": {"r2": 0.0}}},
    }


ENDS: dict[str, tuple[float | None, float | None, bool | None]] = {
    "worse than": (-0.4, -0.1, False),
    "better than": (0.1, 0.4, True),
    "not clearly better or worse than": (-0.4, 0.1, None),
}


@pytest.mark.parametrize("how", ENDS)
def test_the_interval_of_the_difference_decides_against_the_linear_model(how: str):
    low, high, better = ENDS[how]
    result = make_evaluation(low, high)
    compared = compare_with_linear(result)
    assert compared is not None
    assert compared.better is better
    assert conclusions(result)[1].startswith(
        f"The network is {how} ridge regression fitted on 266 training rows (R² 0.3500; "
    )


def test_without_an_interval_nothing_is_clear():
    assert conclusions(make_evaluation(None, None))[1] == (
        "The network is not clearly better or worse than ridge regression fitted on 266 training rows (R² 0.3500; "
        "difference -0.2500, 88 test samples)."
    )


def test_a_linear_model_of_some_rows_says_how_many():
    assert "fitted on 100 of 266 training rows" in conclusions(make_evaluation(0.1, 0.2, rows=100))[1]


def test_without_baselines_the_constant_is_all():
    result = make_evaluation(0.1, 0.2)
    del result["baselines"]
    assert conclusions(result) == [
        "The network is not clearly better than always predicting the mean of the test targets (R² 0.0000)."
    ]


def test_nothing_is_said_of_a_metric_that_is_undefined():
    result = make_evaluation(0.0, 0.0)
    result["headline"]["r2"] = {"value": 0.0, "low": None, "high": None}
    assert conclusions(result) == []
