import numpy as np
import pytest
from scipy import stats

from stormproof_train.errors import UserError
from stormproof_train.evaluation.comparison import McNemar, difference, mcnemar
from stormproof_train.evaluation.predictions import Predictions


def right_at(numbers: list[int], samples: int = 40) -> Predictions:
    """Of two classes, the first one true; wrong everywhere else."""
    right = np.isin(np.arange(samples), numbers)[:, None]
    return Predictions(np.where(right, [0.8, 0.2], [0.3, 0.7]), np.zeros(samples, dtype=int))


def test_mcnemar_counts_what_one_alone_has_right():
    found = mcnemar(right_at([*range(30)]), right_at([*range(25, 32)]))
    assert (found.first_alone, found.second_alone) == (25, 2)
    tails = stats.binom.cdf(2, 27, 0.5) + stats.binom.sf(24, 27, 0.5)
    assert found.p_value == pytest.approx(tails)


def test_two_that_are_right_at_the_same_samples_do_not_differ():
    one = right_at([1, 2, 3])
    assert mcnemar(one, one) == McNemar(0, 0, 1.0)
    assert difference(one, one, "accuracy").value == 0.0


def test_the_difference_of_the_same_samples_is_surer_than_that_of_others():
    rng = np.random.default_rng(0)
    target = rng.normal(size=(200, 1))
    noise = rng.normal(size=(200, 1))
    one, other = (Predictions(target + scale * noise, target) for scale in (1.0, 1.1))
    found = difference(one, other, "rmse")
    assert found.value == pytest.approx(-0.1 * np.sqrt((noise**2).mean()))
    assert found.low is not None
    assert found.high is not None
    assert found.low < found.value < found.high < 0
    assert found.high - found.low < 0.05


def test_runs_that_were_tested_on_other_samples_are_not_compared():
    for other in (right_at([1], samples=39), Predictions(right_at([1]).outputs, np.ones(40, dtype=int))):
        with pytest.raises(UserError, match=r"tested on other samples \(40 and \d+\)"):
            mcnemar(right_at([1]), other)
