"""How far a network is made smaller."""

import pytest

from stormproof_train.compression.settings import search_compression_ratio


@pytest.mark.parametrize(
    ("largest", "tried"),
    [
        (1.0, [2, 1.4]), (1.5, [2, 1.4]), (2.0, [2, 4, 2.8]), (3.9, [2, 4, 2.8]), (5.0, [2, 4, 8, 5.7]),
        (1000.0, [2, 4, 8, 16, 32, 64]),
    ],
)  # fmt: skip
def test_it_doubles_until_it_fails_and_tries_once_between(largest: float, tried: list[float]):
    budgets: list[float] = []

    def goes_on(times: float) -> bool:
        budgets.append(times)
        return times <= largest

    search_compression_ratio(goes_on)
    assert budgets == tried
