"""How many units and networks are dead, against what is known of it in closed form, counted by the detector's own rule.

Lu, Shin, Su, Karniadakis 2020: with symmetric weights and without biases each hidden layer of N units dies on an input
with probability 2^-N, independently of the others.
"""

from __future__ import annotations

import math

import pytest
import torch

from stormproof.units.running_min_max import RunningExtremes, compute_extremes


def dead_units(outputs: torch.Tensor) -> torch.Tensor:
    """Which units of (inputs, units) are dead, seen in batches of two."""
    batch_extremes = [RunningExtremes(*compute_extremes(batch, axis=1), len(batch)) for batch in outputs.split(2)]
    merged = batch_extremes[0]
    for later_extremes in batch_extremes[1:]:
        merged = merged.merge(later_extremes)
    return merged.is_dead()


def deviation(probability: float, count: int) -> float:
    return math.sqrt(probability * (1 - probability) / count)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("width", "layers", "networks", "expected"), [(2, 10, 4000, 0.9249), (4, 20, 4000, 0.7066), (8, 100, 4000, 0.3212)]
)
def test_a_network_is_born_dead_as_often_as_theory_says(width: int, layers: int, networks: int, expected: float):
    """All of its inputs are multiples of one, on which outputs are the same multiples: constant, if they are zero."""
    probability = 1 - (1 - 2.0**-width) ** (layers - 1)
    assert probability == pytest.approx(expected, abs=1e-4)
    generator = torch.Generator().manual_seed(width)
    h = torch.randn(networks, width, generator=generator, dtype=torch.float64)
    h = torch.stack([h, 2 * h, 5 * h])
    born_dead = torch.zeros(networks, dtype=torch.bool)
    for _ in range(layers - 1):
        weights = torch.randn(networks, width, width, generator=generator, dtype=torch.float64)
        h = torch.einsum("bni,noi->bno", h, weights).relu()
        silent = dead_units(h.flatten(1)).view(networks, width)
        assert torch.equal(silent.all(1), ~h.any(-1).any(0))
        born_dead |= silent.all(1)
        h /= h.amax((0, 2), keepdim=True).clamp(min=1e-300)  # a scale changes nothing; without one they overflow
    assert abs(float(born_dead.double().mean()) - probability) < 3 * deviation(probability, networks)


@pytest.mark.parametrize("inputs", [2, 3, 5, 8, 12])
def test_a_unit_of_the_first_layer_is_dead_on_n_symmetric_inputs_with_probability_two_to_the_minus_n(inputs: int):
    units = 40_000
    generator = torch.Generator().manual_seed(inputs)
    x = torch.randn(inputs, units, 3, generator=generator)  # each unit has inputs of its own: they are independent
    weights = torch.randn(units, 3, generator=generator)
    outputs = torch.einsum("bui,ui->bu", x, weights).relu()
    probability = 2.0**-inputs
    dead_share = float(dead_units(outputs).double().mean())
    assert abs(dead_share - probability) < 3 * deviation(probability, units)


@pytest.mark.parametrize("inputs", [10, 100, 1000])
def test_the_bound_of_three_by_n_covers_the_rate_of_95_in_100_units(inputs: int):
    """Of rates that are spread over all magnitudes, and of the worst, just above the bound."""
    generator = torch.Generator().manual_seed(inputs)
    worst = 3 / inputs * 1.0001
    for rates in (10 ** (-4 * torch.rand(5000, generator=generator)), torch.full((5000,), worst)):
        outputs = (torch.rand(inputs, len(rates), generator=generator) < rates).double()
        silent = ~outputs.any(0)
        never_fired = dead_units(outputs) & silent  # and not: fired each time
        assert torch.equal(never_fired, silent)
        covered = ~never_fired | (rates <= 3 / inputs)
        share = float(covered.double().mean())
        assert share > 0.95 - 3 * deviation(0.05, len(rates))
        if rates[0] == rates[1]:
            exact = 1 - (1 - worst) ** inputs
            assert exact >= 0.95
            assert abs(share - exact) < 3 * deviation(exact, len(rates))
