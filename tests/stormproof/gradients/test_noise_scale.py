"""The noise scale of a linear loss, whose gradients are the samples themselves, is that of the data."""

import json
import os
import sys
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins import MixedPrecision
from pytorch_lightning.strategies import DDPStrategy
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from stormproof import GradientNormMonitor
from stormproof.gradients.noise_scale import NoiseEstimate, NoiseMeter, count_samples, estimate_noise, noise_scale
from tests.support.ranks import run_on_two_ranks
from tests.support.small_fits import (
    BOTH_PACKAGES,
    LIGHTNING_WARNING_FILTERS,
    RowsLogger,
    make_loader,
    make_module,
    make_trainer,
)

pytestmark = [*LIGHTNING_WARNING_FILTERS]

BATCH_SIZE, WIDTH, STEPS = 8, 50, 60
MEAN = 0.1  # |G|² = 50 · 0.1² = 0.5 and tr(Σ) = 50, so the noise scale is 100


@dataclass(frozen=True)
class FrozenBatch:
    inputs: torch.Tensor
    name: str = "batch"


class LinearLoss(pl.LightningModule):
    """The gradient of its loss is the mean of the samples."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(WIDTH))

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return (batch[0] @ self.weight).mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=1e-3)


def make_samples(count: int) -> torch.Tensor:
    return torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(0)) + MEAN


def fit(samples: torch.Tensor, accumulate: int, ranks: int = 1, **options: Any) -> tuple[GradientNormMonitor, Any]:
    monitor, logger = GradientNormMonitor(every_n_steps=1), RowsLogger()
    data, rank = TensorDataset(samples), int(os.environ.get("RANK", "0"))
    sampler = DistributedSampler(data, ranks, rank, shuffle=False) if ranks > 1 else None
    pl.Trainer(
        accelerator="cpu", devices=ranks, max_epochs=1, accumulate_grad_batches=accumulate, callbacks=[monitor],
        logger=logger, log_every_n_steps=10, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, **options,
    ).fit(LinearLoss(), DataLoader(data, BATCH_SIZE, sampler=sampler))  # fmt: skip
    return monitor, logger


def expected_samples(samples: torch.Tensor, accumulate: int, ranks: int = 1, rank: int = 0) -> list[NoiseEstimate]:
    """Returns the estimates from the samples of each step. Ranks take turns in the data."""
    parts = samples.view(-1, accumulate, BATCH_SIZE, ranks, WIDTH)
    return [
        estimate_noise(
            float(step[0, :, rank].mean(0).square().sum()), float(step.flatten(0, 2).mean(0).square().sum()),
            BATCH_SIZE, BATCH_SIZE * accumulate * ranks,
        )
        for step in parts
    ]  # fmt: skip


def measured_samples(monitor: GradientNormMonitor) -> list[NoiseEstimate | None]:
    return [measurement.noise for measurement in monitor.history]


def assert_close(actual: Any, expected: list[NoiseEstimate]) -> None:
    assert [list(vars(sample).values()) for sample in actual] == [
        pytest.approx(list(vars(sample).values()), rel=1e-3, abs=1e-3) for sample in expected
    ]


HALF = {"plugins": [MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=256.0))]}


@pytest.mark.parametrize("options", [{}, {"gradient_clip_val": 0.1}], ids=["plain", "clipped"])
def test_accumulated_batches_show_the_noise_scale_of_the_data(options: dict[str, Any]):
    samples = make_samples(BATCH_SIZE * 4 * STEPS)
    monitor, logger = fit(samples, 4, **options)
    assert_close(measured_samples(monitor), expected_samples(samples, 4))
    assert monitor.noise_scale == pytest.approx(100, rel=0.2)
    logged = [row["gradients/noise_scale"] for _, row in logger.rows if "gradients/noise_scale" in row]
    assert logged[-1] == monitor.noise_scale


def test_the_scale_of_a_gradient_scaler_does_not_change_the_noise_scale():
    samples = make_samples(BATCH_SIZE * 4 * 12).bfloat16().float()
    monitor, _ = fit(samples, 4, **HALF)
    (plain, _), measured = fit(samples, 4), measured_samples(monitor)
    assert None not in measured
    assert noise_scale(filter(None, measured)) == pytest.approx(plain.noise_scale, rel=0.02)


@BOTH_PACKAGES
def test_it_is_measured_with_both_packages_of_lightning(lightning: Any):
    monitor = GradientNormMonitor(every_n_steps=1, table=False)
    trainer = make_trainer(lightning, callbacks=[monitor], accumulate_grad_batches=2)
    trainer.fit(make_module(lightning), make_loader(16))
    assert [sample is None for sample in measured_samples(monitor)] == [False] * 4


def test_no_hook_stays_on_the_parameters_after_a_batch_without_a_step():
    module = LinearLoss()
    optimizers = [torch.optim.SGD(module.parameters())]
    trainer: Any = SimpleNamespace(world_size=2, accumulate_grad_batches=1, global_step=0, optimizers=optimizers)
    meter = NoiseMeter(trainer, nullcontext)
    meter.start_batch(torch.zeros(2, WIDTH), lambda: True)
    assert module.weight._post_accumulate_grad_hooks
    meter.end_batch()
    assert not module.weight._post_accumulate_grad_hooks


def test_steps_whose_batches_differ_in_size_are_left_out():
    samples = make_samples(BATCH_SIZE * 8 + 3 * BATCH_SIZE + 1)  # the last step has batches of 8, 8, 8 and 1
    monitor, _ = fit(samples, 4)
    assert [sample is None for sample in measured_samples(monitor)] == [False, False, True]


def test_one_rank_without_accumulation_has_no_noise_scale():
    monitor, logger = fit(make_samples(BATCH_SIZE * 20), 1)
    assert set(measured_samples(monitor)) == {None}
    assert monitor.noise_scale is None
    assert not any("gradients/noise_scale" in row for _, row in logger.rows)


def test_the_estimates_survive_a_resume():
    monitor, _ = fit(make_samples(BATCH_SIZE * 4 * 30), 4)
    restored = GradientNormMonitor()
    restored.load_state_dict(json.loads(json.dumps(monitor.state_dict())))
    assert restored.noise_scale == monitor.noise_scale is not None


@pytest.mark.parametrize(
    ("samples", "scale"),
    [
        ([NoiseEstimate(4.0, 1.0)] * 9, None),
        ([NoiseEstimate(4.0, 1.0)] * 10, 4.0),
        ([NoiseEstimate(4.0, -1.0)] * 10, None),
        ([NoiseEstimate(-4.0, 1.0)] * 10, None),
        ([NoiseEstimate(4.0, -1.0)] * 5 + [NoiseEstimate(6.0, 3.0)] * 5, 5.0),
    ],
)
def test_the_noise_scale_is_a_ratio_of_means_or_unknown(samples: list[NoiseEstimate], scale: float | None):
    assert noise_scale(samples) == scale


@pytest.mark.parametrize(
    ("batch", "count"),
    [
        ({"inputs": torch.zeros(3, 2), "rest": [torch.zeros(3), "text"]}, 3),
        ((torch.zeros(3, 2), torch.zeros(4)), None),
        ((torch.tensor(1.0), torch.zeros(4)), 4),
        ("text", None),
        (FrozenBatch(torch.zeros(3, 2)), 3),
    ],
)
def test_samples_are_counted_only_if_all_tensors_agree(batch: Any, count: int | None):
    assert count_samples(batch) == count


TWO_RANKS: dict[str, tuple[int, dict[str, bool]]] = {
    "plain": (1, {}),
    "accumulated": (2, {}),
    "gradients are views": (1, {"gradient_as_bucket_view": True}),
    "static graph": (1, {"static_graph": True}),
}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_tensors_have_no_first_dimension():
    ragged = torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)])
    assert count_samples({"ragged": ragged, "inputs": torch.zeros(2, 4)}) == 2
    assert count_samples(ragged) is None


@pytest.mark.slow
def test_two_ranks_compare_their_own_batch_with_that_of_the_job(tmp_path: Path):
    run_on_two_ranks(__file__, str(tmp_path), cwd=tmp_path)
    for rank in (0, 1):
        results = json.loads((tmp_path / f"rank{rank}.json").read_text())
        for name, (accumulate, _) in TWO_RANKS.items():
            expected = expected_samples(make_samples(BATCH_SIZE * 2 * accumulate * 12), accumulate, 2, rank)
            assert_close([NoiseEstimate(*values) for values in results[name]], expected)


if __name__ == "__main__":
    results = {}
    for name, (accumulate, options) in TWO_RANKS.items():
        samples = make_samples(BATCH_SIZE * 2 * accumulate * 12)
        monitor, _ = fit(samples, accumulate, 2, strategy=DDPStrategy(**options))
        results[name] = [list(vars(sample).values()) for sample in measured_samples(monitor)]
    Path(sys.argv[1], f"rank{os.environ['RANK']}.json").write_text(json.dumps(results))
