import numpy as np
import pytest
from sklearn import metrics

from stormproof_train.evaluation.predictions import Predictions
from stormproof_train.evaluation.regression import headline, summarize_residuals


def random_predictions(samples: int, outputs: int, shift: float = 0.0) -> Predictions:
    rng = np.random.default_rng(samples + outputs)
    target = rng.normal(shift, 3.0, size=(samples, outputs))
    return Predictions("values", target + rng.normal(0.5, 1.0, size=target.shape), target)


CASES = {
    "one output": random_predictions(100, 1),
    "three outputs": random_predictions(150, 3),
    "far from zero": random_predictions(150, 2, 1e7),
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


@every_case
def test_the_headline_is_scikit_learns(case: Predictions):
    values = {name: float(statistic(np.arange(len(case)))) for name, statistic in headline(case).items()}
    truth = {
        "rmse": metrics.mean_squared_error(case.target, case.outputs) ** 0.5,
        "mae": metrics.mean_absolute_error(case.target, case.outputs),
        "r2": metrics.r2_score(case.target, case.outputs),
    }
    assert values == pytest.approx(truth, abs=1e-9)


@every_case
def test_a_table_of_draws_gives_what_each_row_gives(case: Predictions):
    rows = np.random.default_rng(0).integers(len(case), size=(5, len(case)))
    for name, statistic in headline(case).items():
        expected_rows = [float(statistic(row)) for row in rows]
        assert statistic(rows) == pytest.approx(expected_rows, abs=1e-9), name


def test_of_a_target_that_never_changes_r2_is_zero():
    case = Predictions("values", np.array([[1.0], [2.0]]), np.array([[5.0], [5.0]]))
    assert float(headline(case)["r2"](np.arange(2))) == 0.0


@every_case
def test_residuals_are_target_minus_prediction(case: Predictions):
    for number, residual in enumerate(summarize_residuals(case)):
        left = case.target[:, number] - case.outputs[:, number]
        assert residual.bias == pytest.approx(left.mean())
        assert residual.spread == pytest.approx(np.sqrt(((left - left.mean()) ** 2).sum() / (len(left) - 1)))
        assert (residual.quantiles[0], residual.quantiles[3], residual.quantiles[-1]) == pytest.approx(
            (left.min(), np.median(left), left.max())
        )
