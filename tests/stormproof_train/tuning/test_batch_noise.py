"""The noise scale that ``tune=batch_size`` compares with the batch size."""

import math

import pytest

from stormproof.gradients.noise_scale import batch_size_advice
from stormproof_train.tuning.batch_size import NoiseMeasurement, measure_noise_scale
from tests.support.hydra_configs import compose_plan

pytestmark = [pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec", "ignore:.*does not have many workers")]


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_network_at_its_start_has_a_noise_scale_and_few_steps_have_none(accumulate: int) -> None:
    plan = compose_plan(
        "logger=none", "callbacks=none", "trainer=cpu", f"+trainer.accumulate_grad_batches={accumulate}"
    )
    noise = measure_noise_scale(plan, 48, 1257, steps=20)
    assert isinstance(noise, NoiseMeasurement)
    assert (noise.batch_size, noise.steps) == (48, 20)
    assert 1 < noise.noise_scale < math.inf
    reason = "9 of 9 steps could be measured, and 10 are needed"
    assert measure_noise_scale(plan, 48, 1257, steps=9) == reason


@pytest.mark.parametrize(
    ("scale", "advice"),
    [
        (math.inf, "Larger batches"),
        (640.0, "Larger batches"),
        (639.0, None),
        (6.5, None),
        (6.4, "Batches of about 6 samples"),
    ],
)
def test_only_a_batch_size_far_from_the_noise_scale_has_advice(scale: float, advice: str | None) -> None:
    result = batch_size_advice(scale, 64)
    assert result is None if advice is None else str(result).startswith(advice)
