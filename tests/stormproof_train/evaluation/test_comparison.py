import dataclasses

import numpy as np
import pytest
from scipy import stats

from stormproof_train.errors import UserError
from stormproof_train.evaluation.comparison import McNemar, compare, mcnemar
from stormproof_train.evaluation.predictions import Predictions


def make_predictions(numbers: list[int], samples: int = 40) -> Predictions:
    """Of two classes, the first one true; wrong everywhere else."""
    right = np.isin(np.arange(samples), numbers)[:, None]
    probabilities = np.where(right, [0.8, 0.2], [0.3, 0.7])
    return Predictions("probabilities", probabilities, np.zeros(samples, dtype=int), np.arange(samples))


def test_mcnemar_counts_what_one_alone_has_right():
    counts = mcnemar(make_predictions([*range(30)]), make_predictions([*range(25, 32)]))
    assert (counts.only_first_correct, counts.only_second_correct) == (25, 2)
    tails = stats.binom.cdf(2, 27, 0.5) + stats.binom.sf(24, 27, 0.5)
    assert counts.p_value == pytest.approx(tails)


def test_two_that_are_right_at_the_same_samples_do_not_differ():
    predictions = make_predictions([1, 2, 3])
    assert mcnemar(predictions, predictions) == McNemar(0, 0, 1.0)
    comparison = compare(predictions, predictions)
    assert comparison["samples"] == 40
    assert {name: difference["value"] for name, difference in comparison["differences"].items()} == dict.fromkeys(
        ("accuracy", "f1", "brier", "negative_log_likelihood"), 0.0
    )


def test_of_scores_and_probabilities_what_both_have_is_compared():
    scores = dataclasses.replace(make_predictions([*range(10)]), kind="scores")
    comparison = compare(make_predictions([*range(20)]), scores)
    assert comparison["differences"].keys() == {"accuracy", "f1"}
    assert comparison["differences"]["accuracy"]["value"] == 0.25


def test_the_difference_on_the_same_samples_is_what_scipy_says_and_surer_than_that_on_others():
    rng = np.random.default_rng(0)
    target, noise = rng.normal(size=(2, 200, 1))
    first_predictions, second_predictions = (
        Predictions("values", target + scale * noise, target, np.arange(200)) for scale in (1.0, 1.1)
    )
    comparison = compare(first_predictions, second_predictions)
    assert "mcnemar" not in comparison
    errors = [((predictions.outputs - target) ** 2).ravel() for predictions in (first_predictions, second_predictions)]
    assert comparison["differences"]["rmse"]["value"] == pytest.approx(
        np.sqrt(errors[0].mean()) - np.sqrt(errors[1].mean())
    )

    def rmse_apart(first: np.ndarray, second: np.ndarray, axis: int) -> np.ndarray:
        return np.sqrt(first.mean(axis)) - np.sqrt(second.mean(axis))

    expected = stats.bootstrap(errors, rmse_apart, paired=True, n_resamples=2000, rng=np.random.default_rng(0))
    low, high = (comparison["differences"]["rmse"][end] for end in ("low", "high"))
    assert (low, high) == pytest.approx(tuple(expected.confidence_interval), abs=1e-6)
    apart = stats.bootstrap(errors, rmse_apart, paired=False, method="basic", n_resamples=2000).confidence_interval
    assert high - low < 0.2 * (apart.high - apart.low)


OTHERS = {
    "fewer": make_predictions([1], samples=39),
    "other samples with the same targets": dataclasses.replace(make_predictions([1]), samples=np.arange(1, 41)),
    "other targets": dataclasses.replace(make_predictions([1]), target=np.ones(40, dtype=int)),
    "values": Predictions("values", np.zeros((40, 1)), np.zeros((40, 1)), np.arange(40)),
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS.keys())
def test_runs_that_were_tested_on_other_samples_are_not_compared(other: Predictions):
    with pytest.raises(UserError, match=r"tested on different samples \(40 and \d+\)"):
        compare(make_predictions([1]), other)


def test_where_nobody_wrote_down_the_samples_nothing_is_compared():
    with pytest.raises(UserError, match="do not identify its test samples"):
        compare(make_predictions([1]), dataclasses.replace(make_predictions([1]), samples=None))
