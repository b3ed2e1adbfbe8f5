"""Monitors neither end nor change a run that they cannot measure, and say so once."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 (its name everywhere)
from torch.nn.parameter import is_lazy
from torch.utils.data import DataLoader, TensorDataset

from stormproof import DeadNeuronDetector, DivergenceGuard, GradientNormMonitor, HangWatch, StepTimer, TrainingHealth
from tests.stormproof.monitoring.odd_networks import NETWORKS, Hidden, Strict, Then

UNMEASURED = {
    "wrapper subclass in modules": "net.odd.0, net.odd.1",
    "sparse activations": "net.act",
    "compressed sparse activations": "net.act",
    "quantized activations": "net.act",
    "complex activations": "net.act",
    "module that returns a mock": "net.odd.0",
}
"""Modules that DeadNeuronDetector names, by network."""


class _Classifier(pl.LightningModule):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/loss", F.cross_entropy(self.net(batch[0]), batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        parameters = [parameter for parameter in self.parameters() if is_lazy(parameter) or parameter.requires_grad]
        return torch.optim.SGD(parameters, lr=0.1)


def _monitors() -> list[pl.Callback]:
    return [
        GradientNormMonitor(every_n_steps=1, table=False),
        DeadNeuronDetector(every_n_steps=1, reinit_every_n_steps=1000, table=False),
        StepTimer(),
        TrainingHealth(every_n_steps=1),
        DivergenceGuard(action="stop"),
        HangWatch(),
    ]


def _fit(make: Callable[[], nn.Module], callbacks: list[pl.Callback]) -> tuple[list[Any], list[str]]:
    """Returns the parameters after three epochs, and the warnings of monitors."""
    torch.manual_seed(0)
    module = _Classifier(make())
    torch.manual_seed(0)
    loader = DataLoader(TensorDataset(torch.randn(16, 8), torch.randint(0, 3, (16,))), 4)
    with warnings.catch_warnings(record=True) as records:
        warnings.simplefilter("always")
        pl.Trainer(
            max_epochs=3, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, callbacks=callbacks, log_every_n_steps=2,
        ).fit(module, loader, loader)  # fmt: skip
    messages = [str(record.message) for record in records]
    parameters = [parameter.detach() for parameter in module.parameters() if not is_lazy(parameter)]
    return (
        [parameter.to_dense().tolist() for parameter in parameters],
        [message for message in messages if "measuring" in message or " failed with " in message],
    )


@pytest.mark.parametrize("name", NETWORKS)
def test_monitors_neither_end_nor_change_a_run_they_cannot_measure(name: str):
    weights, _ = _fit(NETWORKS[name], [])
    monitored_weights, messages = _fit(NETWORKS[name], _monitors())
    assert monitored_weights == weights
    assert [message.partition(":")[0] for message in messages] == ([UNMEASURED[name]] if name in UNMEASURED else [])


def test_an_error_of_a_tensor_subclass_in_the_users_code_surfaces():
    def make() -> nn.Module:
        return Hidden(nn.ReLU(), Then(lambda hidden: hidden.as_subclass(Strict).sin()))

    with pytest.raises(NotImplementedError, match="sin"):
        _fit(make, _monitors())
