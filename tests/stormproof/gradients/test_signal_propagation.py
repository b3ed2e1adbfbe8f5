"""The measured norms against theory: by which factor a gradient changes a layer in a wide network."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from stormproof import GradientNormMonitor
from tests.support.small_fits import LIGHTNING_WARNING_FILTERS, RegressionModule, make_module, make_trainer

pytestmark = LIGHTNING_WARNING_FILTERS
WIDTH, DEPTH, SEEDS = 800, 8, 6
FACTORS = {  # activation: the gain that keeps the forward signal, and g_f / g_b (Schoenholz et al. 2017)
    "sigmoid": (nn.Sigmoid, 1.846, 0.391),
    "tanh": (nn.Tanh, 1.593, 1.085),
    "relu": (nn.ReLU, 2**0.5, 1.0),
    "elu": (nn.ELU, 1.245, 1.018),
    "selu": (nn.SELU, 1.0, 1.035),
}


class Wide(RegressionModule):
    """A linear function of the output of a wide, deep network."""

    activation: type[nn.Module]
    gain: float
    seed: int

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(self.seed)
        layers = [nn.Linear(WIDTH, WIDTH) for _ in range(DEPTH)]
        for number, layer in enumerate(layers):
            nn.init.normal_(layer.weight, std=(self.gain if number else 1.0) / WIDTH**0.5)
            nn.init.zeros_(layer.bias)
        self.layer = nn.Sequential(*(submodule for layer in layers for submodule in (layer, self.activation())))
        self.direction = torch.randn(WIDTH)

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        return (self.layer(batch) * self.direction).sum()


@pytest.mark.slow
@pytest.mark.parametrize("name", FACTORS)
def test_the_gradient_changes_by_its_factor_a_layer(name: str):
    activation, gain, factor = FACTORS[name]
    logs = []
    for seed in range(SEEDS):
        monitor = GradientNormMonitor(every_n_steps=1, table=False)
        kind = type("Wide", (Wide,), {"activation": activation, "gain": gain, "seed": seed})
        fit = make_trainer(callbacks=[monitor], max_steps=1, max_epochs=None)
        torch.manual_seed(100 + seed)
        fit.fit(make_module(kind=kind), DataLoader(torch.randn(1, WIDTH)))
        # of the weights between hidden layers, whose inputs all have the same size: of the first one it is the data's
        norms = [monitor.last_norms[f"layer.{2 * number}"] for number in range(1, DEPTH)]
        logs.append(torch.tensor(norms[0] / norms[-1]).log() / (len(norms) - 1))
    assert float(torch.stack(logs).mean().exp()) == pytest.approx(factor, rel=0.03)
