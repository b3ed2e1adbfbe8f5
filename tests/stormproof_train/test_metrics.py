from itertools import pairwise

import pytest
import torch
from sklearn.metrics import r2_score

from stormproof_train.metrics import R2


def _random_values(offset: float, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Predictions and targets (100, 2), of which the second output is of another size."""
    generator = torch.Generator().manual_seed(0)
    targets, noise = (torch.randn(100, 2, generator=generator, dtype=torch.float64) for _ in range(2))
    size = torch.tensor([scale, 3 * scale], dtype=torch.float64)
    return (size * targets + offset).float(), (size * (targets + noise) + offset).float()


def _cut(values: torch.Tensor) -> list[torch.Tensor]:
    return [values[start:end] for start, end in pairwise((0, 1, 33, 90, 100))]


@pytest.mark.parametrize(
    ("offset", "scale"), [(0.0, 1.0), (1e5, 10.0), (-1e6, 10.0), (0.0, 1e-6), (0.0, 1e6)],
    ids=["standard", "large mean", "larger mean", "small unit", "large unit"],
)  # fmt: skip
def test_r2_is_scikit_learns_wherever_the_targets_lie(offset: float, scale: float):
    preds, target = _random_values(offset, scale)
    metric = R2(num_outputs=2)
    for some_preds, some_target in zip(_cut(preds), _cut(target), strict=True):
        metric.update(some_preds, some_target)
    assert metric.compute().item() == pytest.approx(r2_score(target.double().numpy(), preds.double().numpy()), abs=1e-3)


def test_r2_of_several_ranks_is_that_of_all_samples():
    preds, target = _random_values(1e5, 10.0)
    ranks = [R2(num_outputs=2) for _ in range(3)]
    for rank, metric in enumerate(ranks[:2]):  # the third one had no batch
        metric.update(preds[60 * rank : 60 * (rank + 1)], target[60 * rank : 60 * (rank + 1)])
    together = R2(num_outputs=2)
    together.update(preds, target)  # as torchmetrics leaves the states when it has gathered them
    together.samples, together.mean = (
        torch.stack([getattr(rank_metric, name) for rank_metric in ranks]) for name in ("samples", "mean")
    )
    together.spread = torch.stack([rank_metric.spread for rank_metric in ranks]).sum(dim=0)
    assert together.compute().item() == pytest.approx(
        r2_score(target.double().numpy(), preds.double().numpy()), abs=1e-4
    )


def test_r2_of_targets_that_are_all_alike_is_0():
    metric = R2(num_outputs=1)
    metric.update(torch.tensor([[1.0], [2.0]]), torch.ones(2, 1))
    assert metric.compute().item() == 0
