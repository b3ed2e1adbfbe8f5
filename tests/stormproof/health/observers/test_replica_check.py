import math

import pytest
import torch

from stormproof.health.observers.replica_check import largest_difference

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("rows", "difference"),
    [
        ([[1.0, 2.0], [1.0, 2.0]], 0.0),
        ([[1.0, 2.0], [1.0, 1.0], [1.0, 5.0]], 1.5),
        ([[1.0, NAN], [1.0, NAN]], 0.0),
        ([[1.0, 2.0], [1.0, NAN]], INF),
        ([[1.0, NAN], [1.0, 2.0]], INF),
        ([[1.0, INF], [1.0, INF]], 0.0),
        ([[1.0, INF], [1.0, 2.0]], INF),
        ([[0.0], [0.0]], 0.0),
    ],
)
def test_a_difference_between_ranks_is_never_hidden_by_nan(rows: list[list[float]], difference: float):
    assert largest_difference(torch.tensor(rows)) == difference
