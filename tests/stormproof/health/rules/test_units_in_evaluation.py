"""Dead units need enough inputs. Lagging batch norm statistics are a finding of their own."""

from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 (its name everywhere)
from torch.utils.data import DataLoader, TensorDataset

from stormproof import DeadNeuronDetector, TrainingHealth
from stormproof.finding import Finding, Problem, Severity
from tests.support.small_fits import LIGHTNING_WARNING_FILTERS

pytestmark = [
    *LIGHTNING_WARNING_FILTERS,
    pytest.mark.filterwarnings("ignore:no gradient was measured"),
]
GENERATOR = torch.Generator().manual_seed(0)
INPUTS = torch.randn(640, 8, generator=GENERATOR)
TARGETS = INPUTS[:, :1] * INPUTS[:, 1:2]


class _Regression(pl.LightningModule):
    def __init__(self, activation: nn.Module, norm: nn.Module | None = None, offset: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Linear(8, 32), norm or nn.Identity(), activation, nn.Linear(32, 1))
        nn.init.constant_(self.network[0].bias, offset)  # type: ignore[arg-type]

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return F.mse_loss(self.network(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/loss", F.mse_loss(self.network(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def _findings(module: pl.LightningModule, validation_samples: int, epochs: int = 3) -> list[Finding]:
    health = TrainingHealth(every_n_steps=10)
    train = DataLoader(TensorDataset(INPUTS, TARGETS), batch_size=16, shuffle=True)
    validation = TensorDataset(INPUTS[:validation_samples], TARGETS[:validation_samples])
    pl.Trainer(
        max_epochs=epochs, callbacks=[health, DeadNeuronDetector(every_n_steps=1, table=False)], accelerator="cpu",
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    ).fit(module, train, DataLoader(validation, batch_size=32))  # fmt: skip
    return health.findings


@pytest.mark.parametrize(("activation", "samples"), [(nn.ReLU, 1), (nn.ReLU, 32), (nn.Tanh, 1), (nn.Tanh, 2)])
def test_a_validation_pass_of_few_samples_shows_no_dead_units(activation: type[nn.Module], samples: int):
    assert _findings(_Regression(activation()), samples) == []


@pytest.mark.parametrize("samples", [2, 320])
def test_units_that_are_dead_in_training_are_reported_whatever_the_validation(samples: int):
    module = _Regression(nn.ReLU(), offset=-50.0)
    problems = [finding.problem for finding in _findings(module, samples)]
    assert Problem.DEAD_UNITS in problems


def test_statistics_of_batch_norm_that_lag_are_reported_as_such():
    module = _Regression(nn.ReLU(), nn.BatchNorm1d(32, momentum=1e-4), offset=-50.0)
    findings = _findings(module, 320)
    assert [(finding.problem, finding.severity) for finding in findings] == [
        (Problem.BATCH_NORM_STATISTICS_LAG, Severity.WARNING)
    ]
    assert findings[0].where == "network.2"
    assert findings[0].evidence == {"dead_in_evaluation": 32.0, "dead_in_training": 0.0, "units": 32.0}


def test_statistics_that_never_change_are_reported_with_the_validation_loss():
    module = _Regression(nn.ELU(), nn.BatchNorm1d(32, momentum=0.0), offset=10.0)
    finding = _findings(module, 320)[0]
    assert (finding.problem, finding.where) == (Problem.BATCH_NORM_STATISTICS_LAG, "network.1")
    assert finding.evidence["distance"] > 2
    assert finding.evidence["validation"] > 2 * finding.evidence["training"]


@pytest.mark.parametrize("momentum", [0.1, None])
def test_up_to_date_statistics_are_no_finding(momentum: float | None):
    module = _Regression(nn.ELU(), nn.BatchNorm1d(32, momentum=momentum), offset=10.0)
    assert _findings(module, 320) == []


def test_the_finding_is_withdrawn_once_the_statistics_have_caught_up():
    module = _Regression(nn.ReLU(), nn.BatchNorm1d(32, momentum=0.02), offset=-50.0)
    findings = _findings(module, 320, epochs=8)
    assert [(finding.problem, finding.severity) for finding in findings] == [
        (Problem.BATCH_NORM_STATISTICS_LAG, Severity.INFO)
    ]


def test_units_that_only_dropout_activates_are_information():
    module = _Regression(nn.ReLU())
    hidden, head = nn.Linear(32, 32), nn.Sequential(nn.Linear(32, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 1))
    layers = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Dropout(0.5), hidden, nn.ReLU()).eval()
    with torch.no_grad():
        hidden.bias[:20] -= layers[:4](INPUTS).amax(0)[:20] + 0.02
    module.network = nn.Sequential(*layers.train(), *head)
    findings = [entry for entry in _findings(module, 320) if entry.where == "network.4"]
    assert [(entry.problem, entry.severity) for entry in findings] == [(Problem.DEAD_UNITS, Severity.INFO)]
    assert findings[0].evidence["dead_in_training"] < 16 <= findings[0].evidence["dead_in_evaluation"]
