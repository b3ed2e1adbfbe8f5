"""Constant tensors of a batch that are not targets of the loss are no finding; constant targets are one."""

from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 (its name everywhere)
from torch.utils.data import DataLoader

from stormproof import TrainingHealth
from stormproof.finding import Problem
from stormproof.health.observers.loss.objective import Objective
from stormproof.health.observers.loss.target_pool import TargetPool
from tests.support.small_fits import LIGHTNING_WARNING_FILTERS

pytestmark = [
    *LIGHTNING_WARNING_FILTERS,
    pytest.mark.filterwarnings("ignore:no gradient was measured"),
]


class _Module(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Linear(8, 16), nn.ELU(), nn.Linear(16, 8))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


class _Autoencoder(_Module):
    """Reconstructs the first tensor and leaves the others unused."""

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        inputs = next(iter(batch.values())) if isinstance(batch, dict) else batch[0]
        return F.mse_loss(self.network(inputs), inputs)


class _Masked(_Module):
    """Predicts the next value of a sequence where a mask is one."""

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        values, mask = batch["values"], batch["attention_mask"]
        errors = F.mse_loss(self.network(values), values.roll(-1, 1), reduction="none")
        return (errors * mask).sum() / mask.sum()


class _Weighted(_Module):
    """Weights each sample of a regression."""

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        inputs, targets, weights = batch
        return (F.mse_loss(self.network(inputs), targets, reduction="none") * weights).mean()


class _Critic(_Module):
    """A Wasserstein critic, whose loss has no targets."""

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        real, _ = batch
        return self.network(torch.randn_like(real)).mean() - self.network(real).mean()


class _LoggedMetric(_Module):
    """Logs a metric of constant labels that the loss is not computed from."""

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        inputs, labels = batch
        outputs = self.network(inputs)
        with torch.no_grad():
            self.log("accuracy", F.cross_entropy(outputs, labels))
        return (outputs - inputs).abs().mean()


class _HandWritten(_Module):
    """Squared errors without a function of torch for them."""

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        inputs, targets = batch
        return (self.network(inputs) - targets).pow(2).mean()


class _TwoTasks(_Module):
    """One task has constant targets, the other does not."""

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        inputs, targets, classes = batch
        outputs = self.network(inputs)
        return F.mse_loss(outputs, targets) + F.cross_entropy(outputs, classes)


class _OverwrittenTargets(_Module):
    """Overwrites all classes with class 7 by mistake."""

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        classes = (batch[0][:, 0] > 0).long()
        return F.cross_entropy(self.network(batch[0]), classes.clone().fill_(7))


class _Scalars(_Module):
    """Compares the mean of a batch with the mean of its outputs."""

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return F.mse_loss(self.network(batch[0]).mean(), batch[0].mean())


class _Ranked(_Module):
    """Ranks pairs. All targets are one."""

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        margins = (self.network(batch[0]) - self.network(batch[0].flip(1))).sum(1)
        return F.binary_cross_entropy_with_logits(margins, torch.ones_like(batch[0][:, 0]))


class _SampledNegatives(_Module):
    """Adds random pairs with the target zero to a batch of clicks, whose targets are one."""

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        clicks, targets = batch
        scores = self.network(torch.cat([clicks, torch.randn_like(clicks)])).mean(1)
        return F.binary_cross_entropy_with_logits(scores, torch.cat([targets, torch.zeros_like(targets)]))


class _OneClass(_Module):
    """Maps all samples to a fixed center."""

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return F.mse_loss(self.network(batch[0]), batch[1])


GENERATOR = torch.Generator().manual_seed(0)
INPUTS = torch.randn(320, 8, generator=GENERATOR)
ONES, CONSTANT, ZEROS = torch.ones(320, 8), torch.full((320,), 8), torch.zeros(320, dtype=torch.long)

HEALTHY = {
    "attention mask": (_Masked, {"values": INPUTS, "attention_mask": ONES}),
    "means": (_Scalars, (INPUTS, ZEROS)),
    "clicks with sampled negatives": (_SampledNegatives, (INPUTS, ONES[:, 0])),
    "center of one class": (_OneClass, (INPUTS, INPUTS[:1].expand(320, 8))),
    "pairs": (_Ranked, (INPUTS, ZEROS)),
    "lengths": (_Autoencoder, (INPUTS, CONSTANT)),
    "unused mask of a dictionary": (_Autoencoder, {"values": INPUTS, "attention_mask": ONES}),
    "sample weights": (_Weighted, (INPUTS, INPUTS.flip(1), ONES)),
    "unused label of a critic": (_Critic, (INPUTS, ZEROS)),
    "labels of a metric": (_LoggedMetric, (INPUTS, ZEROS)),
    "one of two tasks": (_TwoTasks, (INPUTS, INPUTS.flip(1), ZEROS)),
}
DEGENERATE = {
    "autoencoder of one image": (_Autoencoder, (ONES, CONSTANT)),
    "targets that the step makes constant": (_OverwrittenTargets, (INPUTS, ZEROS)),
    "handwritten loss": (_HandWritten, (INPUTS, ONES)),
    "weighted loss": (_Weighted, (INPUTS, ONES, INPUTS.abs())),
    "both of two tasks": (_TwoTasks, (INPUTS, ONES, ZEROS)),
}


def _problems(kind: type[_Module], tensors: Any, batch_size: int = 16) -> list[Problem]:
    indices = range(len(INPUTS))
    if isinstance(tensors, dict):
        samples: list[Any] = [{name: values[index] for name, values in tensors.items()} for index in indices]
    else:
        samples = [tuple(values[index] for values in tensors) for index in indices]
    health = TrainingHealth()
    trainer = pl.Trainer(
        max_epochs=2, callbacks=[health], accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(kind(), DataLoader(samples, batch_size=batch_size, shuffle=True))
    return [finding.problem for finding in health.findings]


@pytest.mark.parametrize(("kind", "tensors"), HEALTHY.values(), ids=HEALTHY.keys())
def test_a_constant_tensor_that_is_not_a_target_is_no_finding(kind: type[_Module], tensors: Any):
    assert Problem.DEGENERATE_TARGETS not in _problems(kind, tensors)


def test_repeating_one_sample_is_no_finding():
    assert Problem.DEGENERATE_TARGETS not in _problems(_Autoencoder, (ONES, CONSTANT), batch_size=1)


@pytest.mark.parametrize(("kind", "tensors"), DEGENERATE.values(), ids=DEGENERATE.keys())
def test_constant_targets_of_the_loss_are_found(kind: type[_Module], tensors: Any):
    assert Problem.DEGENERATE_TARGETS in _problems(kind, tensors)


@pytest.mark.parametrize("name", ["cross_entropy", "mse_loss"])
def test_sequences_of_another_length_are_compared_with_one_constant_for_all_positions(name: str):
    pool, generator = TargetPool(), torch.Generator().manual_seed(0)
    long, short = (torch.rand(40, length, 2, generator=generator) for length in (10, 7))  # (samples, length, features)
    constant = long.mean((0, 1), keepdim=True)
    if name == "cross_entropy":
        long, short = (numbers[..., 0].round().long() for numbers in (long, short))
        constant = (long.flatten().bincount() / long.numel()).log()[None, :, None]  # (1, classes, 1)
    prediction = torch.zeros(40, 2, 7) if name == "cross_entropy" else torch.zeros(40, 7, 2)
    pool.add(long)
    loss = pool.constant_loss(Objective(name, getattr(F, name), {}, prediction, short), user_loss=None)
    assert loss == pytest.approx(float(getattr(F, name)(constant.expand_as(prediction), short)))
