import pytest
import torch

from stormproof.gradients.update_ratio import (
    SAMPLED_ENTRIES,
    UpdateRatio,
    WeightSampler,
    moments_from_row,
    ratio_from_moments,
)

SHAPES = {
    "linear": (512, 256),
    "convolution": (64, 32, 3, 3),
    "odd": (7, 11, 13),
    "bias": (4096,),
    "tall": (30_000, 8),
    "even": (1000, 1000),
}


def measure_ratio(weights: list[torch.Tensor], updates: list[torch.Tensor]) -> tuple[UpdateRatio | None, torch.Tensor]:
    sampler = WeightSampler(weights)
    before = sampler.sample()
    for weight, update in zip(weights, updates, strict=True):
        weight.add_(update)
    moments = [moments_from_row(row) for row in sampler.gram_rows(before, sampler.sample()).tolist()]
    return ratio_from_moments([sum(moment) for moment in zip(*moments, strict=True)]), before


def random_layer(shape: tuple[int, ...], generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of weights and columns of updates of different sizes, as a trained layer has them."""

    def draw(*size: int) -> torch.Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64)

    rows = (draw(shape[0]) / 2).exp().reshape(-1, *[1] * (len(shape) - 1))
    columns = (draw(shape[-1]) / 2).exp()
    return draw(*shape) * rows, 1e-3 * draw(*shape) * columns


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_the_interval_holds_the_true_ratio_in_some_95_of_100_layers(shape: tuple[int, ...]):
    generator = torch.Generator().manual_seed(1)
    covered = 0
    for _ in range(100):
        weight, update = random_layer(shape, generator)
        true = float(update.norm() / weight.norm())
        ratio, _ = measure_ratio([weight], [update])
        assert ratio is not None
        covered += abs(ratio.value - true) <= ratio.half_width
    assert covered >= 88  # 95 but for heavy tails, for which a normal interval of some 256 entries is a little short


def test_several_tensors_are_weighted_by_their_sizes():
    generator = torch.Generator().manual_seed(2)
    pairs = [random_layer(shape, generator) for shape in SHAPES.values()]
    weights, updates = [weight for weight, _ in pairs], [update for _, update in pairs]
    true = float(torch.cat([u.flatten() for u in updates]).norm() / torch.cat([w.flatten() for w in weights]).norm())
    ratio, _ = measure_ratio(weights, updates)
    assert ratio is not None
    assert 0 < ratio.half_width < 0.3 * ratio.value
    assert abs(ratio.value - true) <= 1.5 * ratio.half_width


@pytest.mark.parametrize("shape", [(), (1,), (16, 16), (SAMPLED_ENTRIES,), (2, 2, 2)])
def test_a_small_tensor_is_taken_whole_and_has_no_error(shape: tuple[int, ...]):
    weight, update = torch.rand(shape, dtype=torch.float64) + 1, torch.rand(shape, dtype=torch.float64)
    true = float(update.norm() / weight.norm())
    ratio, _ = measure_ratio([weight], [update])
    assert ratio is not None
    assert (ratio.value, ratio.half_width) == (pytest.approx(true), 0.0)


@pytest.mark.parametrize("shape", [*SHAPES.values(), (2, 3, 5, 7, 11), (6, 6, 6, 6)])
def test_the_sample_is_bounded_and_meets_all_rows_and_columns(shape: tuple[int, ...]):
    numbers = torch.arange(torch.Size(shape).numel(), dtype=torch.float64).reshape(shape)
    _, entries = measure_ratio([numbers], [torch.zeros(shape, dtype=torch.float64)])
    assert min(numbers.numel(), SAMPLED_ENTRIES) <= len(entries) < 12 * SAMPLED_ENTRIES
    places = torch.unravel_index(entries.long(), shape)
    for size, along in zip(shape, places, strict=True):
        assert len(along.unique()) >= 0.6 * min(size, SAMPLED_ENTRIES)


def test_weights_in_another_order_of_memory_and_complex_ones_are_sampled_too():
    plain = torch.randn(32, 16, 3, 3, generator=torch.Generator().manual_seed(3))
    for weight in (plain.to(memory_format=torch.channels_last), plain.transpose(0, 1), plain + 1j * plain):
        ratio, _ = measure_ratio([weight.clone(memory_format=torch.preserve_format)], [0.1 * weight])
        assert ratio is not None
        assert ratio.value == pytest.approx(0.1, rel=1e-5)
        assert ratio.half_width < 1e-6


def test_weights_that_stay_have_a_ratio_of_zero_and_zeros_have_none():
    assert measure_ratio([torch.ones(4)], [torch.zeros(4)])[0] == UpdateRatio(0.0, 0.0)
    assert measure_ratio([torch.zeros(4)], [torch.ones(4)])[0] is None


def test_an_empty_tensor_adds_nothing():
    ratio, _ = measure_ratio([torch.ones(4), torch.ones(0)], [torch.full((4,), 0.5), torch.ones(0)])
    assert ratio == UpdateRatio(0.5, 0.0)
