"""Runs that return no loss at first, to fill a replay buffer, have no findings."""

from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 (its name everywhere)
from torch.utils.data import DataLoader, TensorDataset

from stormproof import TrainingHealth
from stormproof.finding import Problem, Severity
from tests.support.small_fits import LIGHTNING_WARNING_FILTERS

pytestmark = [
    *LIGHTNING_WARNING_FILTERS,
    pytest.mark.filterwarnings("ignore:.*returned `None`.*"),
    pytest.mark.filterwarnings("ignore:no gradient was measured"),
]


class _Replay(pl.LightningModule):
    """Returns no loss for the first ``warm_up`` batches."""

    def __init__(self, warm_up: int, *, manual: bool, steps: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.network = nn.Linear(8, 1)
        self.automatic_optimization = not manual
        self.warm_up, self.steps = warm_up, steps

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor | None:
        if batch_idx < self.warm_up:
            return None
        (inputs,) = batch
        loss = F.mse_loss(self.network(inputs), inputs.sum(1, keepdim=True))
        if self.automatic_optimization:
            return loss
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(loss)
        if self.steps:
            optimizer.step()
        return None

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


class _FindingRecorder(pl.Callback):
    """Records the severities of all findings of a run, also of those that are withdrawn."""

    def __init__(self, health: TrainingHealth) -> None:
        self.health, self.recorded = health, set[tuple[Problem, Severity]]()

    def on_train_batch_end(self, *_: Any) -> None:
        self.recorded |= {(finding.problem, finding.severity) for finding in self.health.findings}


def _fit(
    module: pl.LightningModule, batches: int = 300, every_n_steps: int = 10, **trainer: Any
) -> tuple[TrainingHealth, _FindingRecorder]:
    health = TrainingHealth(every_n_steps=every_n_steps)
    worst = _FindingRecorder(health)
    data = TensorDataset(torch.randn(batches, 8, generator=torch.Generator().manual_seed(0)))
    pl.Trainer(
        **{"max_epochs": 1, **trainer}, callbacks=[health, worst], accelerator="cpu", logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    ).fit(module, DataLoader(data, batch_size=1))  # fmt: skip
    return health, worst


@pytest.mark.parametrize("every_n_steps", [10, 100])
@pytest.mark.parametrize("manual", [False, True], ids=["automatic", "manual"])
def test_a_warm_up_has_no_finding(manual: bool, every_n_steps: int):
    health, worst = _fit(_Replay(99, manual=manual), every_n_steps=every_n_steps)
    assert health.findings == []
    assert worst.recorded == set()


@pytest.mark.parametrize("manual", [False, True], ids=["automatic", "manual"])
def test_a_run_that_never_returns_a_loss_is_critical_after_half_of_it(manual: bool):
    health, _ = _fit(_Replay(300, manual=manual))
    assert next((finding.problem, finding.severity) for finding in health.findings) == (
        Problem.NO_GRADIENT,
        Severity.CRITICAL,
    )


def test_a_run_without_an_end_that_never_returns_a_loss_is_critical_after_two_epochs():
    health, _ = _fit(_Replay(40, manual=True), batches=40, max_epochs=-1, max_time={"seconds": 1})
    assert next((finding.problem, finding.severity) for finding in health.findings) == (
        Problem.NO_GRADIENT,
        Severity.CRITICAL,
    )


def test_a_backward_pass_without_a_step_is_critical_at_once():
    health, _ = _fit(_Replay(0, manual=True, steps=False), batches=90, max_epochs=10)
    assert (Problem.NO_GRADIENT, Severity.CRITICAL) in [
        (finding.problem, finding.severity) for finding in health.findings
    ]


def test_a_critical_finding_is_withdrawn_once_a_step_disproves_it():
    health, worst = _fit(_Replay(200, manual=True))  # more than half of the run
    assert (Problem.NO_GRADIENT, Severity.CRITICAL) in worst.recorded
    assert [(finding.problem, finding.severity) for finding in health.findings] == [
        (Problem.NO_GRADIENT, Severity.INFO)
    ]
    assert "until_step" in health.findings[0].evidence
