"""A resume restores state that no ``state_dict`` holds. In each case the loss depends on this state."""

import random
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EMAWeightAveraging
from torchmetrics import MaxMetric, MeanMetric
from torchmetrics.wrappers import MetricTracker

from stormproof import CheckpointRecovery, resumable
from tests.support.small_fits import LIGHTNING_WARNING_FILTERS, make_loader, make_trainer

pytestmark = LIGHTNING_WARNING_FILTERS


class Scaled(pl.LightningModule):
    """Multiplies its loss by ``factor``, which subclasses compute from state of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Linear(2, 1)

    def factor(self, loss: torch.Tensor) -> Any:
        raise NotImplementedError

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        loss = self.net(batch).square().mean()
        return loss * self.factor(loss.detach())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.net.parameters(), lr=0.05)


class Buffer(Scaled):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(()), persistent=False)

    def factor(self, loss: torch.Tensor) -> Any:
        self.mean.mul_(0.9).add_(0.1 * loss)
        return 1 + self.mean


class LateBuffer(Scaled):
    """The first step registers its buffer, and each step makes it longer."""

    def factor(self, loss: torch.Tensor) -> Any:
        past = getattr(self, "past", torch.zeros(0))
        if not len(past):
            self.register_buffer("past", past, persistent=False)
        self.past = torch.cat([past, loss[None]])
        return 1 + self.past.sum()


class Generators(Scaled):
    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(3)
        self.by_name = {"numpy": [np.random.default_rng(4)], "old": np.random.RandomState(5)}
        self.draw: Callable[[], float] = random.Random(6).random
        self.net.bits = np.random.PCG64(7)  # type: ignore[assignment]

    def factor(self, loss: torch.Tensor) -> Any:
        numbers = [torch.rand((), generator=self.generator), self.by_name["numpy"][0].random(), self.draw()]
        return 1 + sum(numbers) + self.by_name["old"].normal() ** 2 + self.net.bits.random_raw() % 7


GLOBAL_GENERATOR = np.random.default_rng(1)


class GlobalGenerator(Scaled):
    def __init__(self) -> None:
        super().__init__()
        GLOBAL_GENERATOR.bit_generator.state = np.random.default_rng(1).bit_generator.state

    def factor(self, loss: torch.Tensor) -> Any:
        return 1 + GLOBAL_GENERATOR.random()


class GeneratorsOfOthers(Scaled):
    def factor(self, loss: torch.Tensor) -> Any:
        return 1 + self.trainer.callbacks[-1].jitter[0].random() + self.trainer.datamodule.rng.random()


class GeneratorOfAnOptimizer(Scaled):
    def factor(self, loss: torch.Tensor) -> Any:
        return 1 + self.trainer.optimizers[0].noise.random()  # type: ignore[attr-defined]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        optimizer: Any = super().configure_optimizers()
        optimizer.noise = np.random.default_rng(2)
        return optimizer


class Metrics(Scaled):
    """Keeps metrics in plain containers, which ``modules()`` does not search."""

    def __init__(self) -> None:
        super().__init__()
        self.metrics = [MeanMetric(), MetricTracker(MaxMetric(), maximize=True)]
        self.metrics[1].increment()

    def factor(self, loss: torch.Tensor) -> Any:
        mean, tracker = self.metrics
        mean.update(loss)
        tracker.update(loss)
        value = 1 + mean.compute() + sum(tracker.compute_all())
        tracker.increment()
        return value


class MetricsOfOthers(Scaled):
    def factor(self, loss: torch.Tensor) -> Any:
        mean = self.trainer.callbacks[-1].mean
        mean.update(loss)
        return 1 + mean.compute()


class TwoCadences(Scaled):
    """Accumulates gradients of one layer over four batches while another one is stepped each batch."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.slow = torch.nn.Linear(2, 1)

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        fast, slow = self.optimizers()
        fast.zero_grad()
        self.manual_backward(self.net(batch).square().mean())
        fast.step()
        self.manual_backward((self.slow(batch) - 1).square().mean())
        if batch_idx % 4 == 3:
            slow.step()
            slow.zero_grad()

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(part.parameters(), lr=0.05) for part in (self.net, self.slow)]


class KeepsGradients(Scaled):
    """Keeps its gradients from step to step, as momentum does."""

    def factor(self, loss: torch.Tensor) -> Any:
        return 1

    def optimizer_zero_grad(self, *args: Any) -> None:
        for parameter in self.net.parameters():
            if parameter.grad is not None:
                parameter.grad.mul_(0.5)


class OwnZeroGrad(Scaled):
    """Its optimizer keeps gradients in every second step."""

    class Optimizer(torch.optim.SGD):
        calls = 0

        def zero_grad(self, set_to_none: bool = True) -> None:
            if int(self.param_groups[0]["lr"] * 1e6) % 2:
                super().zero_grad(set_to_none)

    def factor(self, loss: torch.Tensor) -> Any:
        return 1

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.Optimizer(self.net.parameters(), lr=0.05)


class Unlisted(Scaled):
    """Trains a parameter that belongs to no module, and one that its ``state_dict`` leaves out."""

    strict_loading = False

    def __init__(self) -> None:
        super().__init__()
        self.head = [torch.nn.Parameter(torch.ones(1))]
        self.hidden = torch.nn.Linear(1, 1)
        torch.nn.init.constant_(self.hidden.weight, 0.5)
        torch.nn.init.constant_(self.hidden.bias, 0.5)

    def factor(self, loss: torch.Tensor) -> Any:
        return self.hidden(self.head[0]).square().sum()

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        state = super().state_dict(*args, **kwargs)
        return {name: value for name, value in state.items() if "hidden" not in name}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([*self.parameters(), *self.head], lr=0.05)


class Sparse(Scaled):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("adjacency", torch.eye(2).to_sparse())
        self.register_buffer("hidden", torch.eye(2).to_sparse(), persistent=False)

    def factor(self, loss: torch.Tensor) -> Any:
        return 1 + torch.sparse.sum(self.adjacency)


class Others(pl.Callback):
    def __init__(self, stop: int) -> None:
        self.stop, self.mean, self.jitter = stop, MeanMetric(), (random.Random(8),)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx + 1 == self.stop:
            raise KeyError("killed")


class Numbers(pl.LightningDataModule):
    def __init__(self) -> None:
        super().__init__()
        self.rng = np.random.default_rng(9)

    def train_dataloader(self) -> Any:
        return resumable(make_loader(16), seed=1)


def fit(kind: type[Scaled], folder: Path, *callbacks: pl.Callback, stop: int = 0, **options: Any) -> Any:
    torch.manual_seed(0)
    recovery, module = CheckpointRecovery(folder, every_n_train_steps=1, async_save=False), kind()
    pl_trainer = make_trainer(callbacks=[*callbacks, recovery, Others(stop)], **options)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "(?s).*exact.*")
            pl_trainer.fit(module, datamodule=Numbers(), ckpt_path=recovery.latest_checkpoint())
    except KeyError:
        assert stop
    return module


@pytest.mark.parametrize(
    "kind",
    [
        Buffer,
        LateBuffer,
        Generators,
        GlobalGenerator,
        GeneratorsOfOthers,
        GeneratorOfAnOptimizer,
        Metrics,
        MetricsOfOthers,
        TwoCadences,
        KeepsGradients,
        OwnZeroGrad,
        Unlisted,
        Sparse,
    ],
)
def test_a_resume_restores_state_that_no_state_dict_holds(kind: type[Scaled], tmp_path: Path):
    expected = fit(kind, tmp_path / "whole")
    fit(kind, tmp_path / "killed", stop=4)
    resumed = fit(kind, tmp_path / "killed")
    assert all(map(torch.equal, resumed.parameters(), expected.parameters()))
    assert all(map(torch.equal, map(dense, resumed.buffers()), map(dense, expected.buffers())))
    assert all(map(torch.equal, getattr(resumed, "head", []), getattr(expected, "head", [])))


def dense(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_dense() if tensor.is_sparse else tensor


class Double(Scaled):
    """Depends on all 64 bits of its weights, and logs a mean of 32-bit numbers."""

    not_restored = ("means",)

    def __init__(self) -> None:
        super().__init__()
        self.means: list[float] = []

    def factor(self, loss: torch.Tensor) -> Any:
        self.log("loss", loss.float(), on_step=True, on_epoch=True)
        return 1

    def on_train_epoch_end(self) -> None:
        self.means.append(float(self.trainer.callback_metrics["loss_epoch"]))


def test_the_average_of_a_non_persistent_buffer_is_restored(tmp_path: Path):
    expected = fit(Buffer, tmp_path / "whole", EMAWeightAveraging(decay=0.8))
    fit(Buffer, tmp_path / "killed", EMAWeightAveraging(decay=0.8), stop=4)
    resumed = fit(Buffer, tmp_path / "killed", EMAWeightAveraging(decay=0.8))
    assert torch.equal(resumed.mean, expected.mean)
    assert all(map(torch.equal, resumed.parameters(), expected.parameters()))


class Product(Scaled):
    """Trains with NAdam, which keeps a product in float32 for parameters of any dtype."""

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        return self.net(batch.to(self.net.weight.dtype)).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.NAdam(self.net.parameters(), lr=0.05)


@pytest.mark.parametrize("precision", ["64-true", "bf16-true"])
def test_an_optimizer_keeps_the_dtypes_of_its_state(precision: str, tmp_path: Path):
    def product(module: Any) -> torch.Tensor:
        return module.trainer.optimizers[0].state[module.net.weight]["mu_product"]

    expected = fit(Product, tmp_path / "whole", precision=precision)
    fit(Product, tmp_path / "killed", stop=4, precision=precision)
    resumed = fit(Product, tmp_path / "killed", precision=precision)
    assert product(expected).dtype == torch.float32
    torch.testing.assert_close(product(resumed), product(expected), rtol=0, atol=0)
    assert all(map(torch.equal, resumed.parameters(), expected.parameters()))


class MasterWeights(Product):
    """Trains bfloat16 parameters through float32 master weights in a nested optimizer state."""

    class Optimizer(torch.optim.SGD):
        @torch.no_grad()
        def step(self, closure: Any = None) -> Any:
            loss = closure()
            for parameter in self.param_groups[0]["params"]:
                master = self.state[parameter].setdefault("master", {"weight": parameter.float().clone()})["weight"]
                master -= self.param_groups[0]["lr"] * parameter.grad.float()
                parameter.copy_(master)
            return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.Optimizer(self.net.parameters(), lr=1e-3)


class MixedDtypes(MasterWeights):
    """Also has a buffer of the master weights' dtype."""

    def setup(self, stage: str) -> None:
        self.register_buffer("limits", torch.ones(2, dtype=torch.float32))


class ListedState(Scaled):
    """Keeps float64 sums in a list and a tuple of the optimizer's state, and trains a parameter outside the module."""

    class Optimizer(torch.optim.SGD):
        @torch.no_grad()
        def step(self, closure: Any = None) -> Any:
            loss = closure()
            for parameter in self.param_groups[0]["params"]:
                sums = self.state[parameter].setdefault("sums", [torch.zeros(parameter.shape, dtype=torch.float64)])
                self.state[parameter]["pair"] = (sums[0] / 3, 1)
                sums[0] += parameter.grad
                parameter.sub_(sums[0] * self.param_groups[0]["lr"])
            return loss

    def __init__(self) -> None:
        super().__init__()
        self.hidden = [torch.nn.Parameter(torch.ones(4, dtype=torch.bfloat16))]

    def factor(self, loss: torch.Tensor) -> Any:
        return self.hidden[0].sum().float()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.Optimizer([*self.net.parameters(), *self.hidden], lr=0.05)


def test_an_optimizer_keeps_the_dtypes_of_lists_in_its_state(tmp_path: Path):
    def states(fitted: Any) -> list[Any]:
        return list(fitted.trainer.optimizers[0].state.values())

    expected = fit(ListedState, tmp_path / "whole")
    fit(ListedState, tmp_path / "killed", stop=4)
    resumed = fit(ListedState, tmp_path / "killed")
    for resumed_state, expected_state in zip(states(resumed), states(expected), strict=True):
        torch.testing.assert_close(resumed_state, expected_state, rtol=0, atol=0)
    assert torch.equal(resumed.hidden[0], expected.hidden[0])


@pytest.mark.parametrize("kind", [MasterWeights, MixedDtypes])
def test_an_optimizer_keeps_the_dtypes_of_a_nested_state(kind: type[Scaled], tmp_path: Path):
    expected = fit(kind, tmp_path / "whole", precision="bf16-true")
    fit(kind, tmp_path / "killed", stop=4, precision="bf16-true")
    resumed = fit(kind, tmp_path / "killed", precision="bf16-true")
    for resumed_parameter, expected_parameter in zip(resumed.net.parameters(), expected.net.parameters(), strict=True):
        masters = [
            pl_module.trainer.optimizers[0].state[p]["master"]["weight"]
            for pl_module, p in ((resumed, resumed_parameter), (expected, expected_parameter))
        ]
        torch.testing.assert_close(*masters, rtol=0, atol=0)


def test_a_resume_in_64_bits_loses_no_bit_of_weights_and_means(tmp_path: Path):
    options = {"precision": "64-true", "max_epochs": 2}
    expected = fit(Double, tmp_path / "whole", **options)
    fit(Double, tmp_path / "killed", stop=4, **options)
    resumed = fit(Double, tmp_path / "killed", **options)
    assert all(map(torch.equal, resumed.parameters(), expected.parameters()))
    assert resumed.means == expected.means
