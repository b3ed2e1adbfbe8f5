"""Learning rates, optimizers and data orders with unusual losses."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F  # noqa: N812
from diagnosis_bank.program import Outcome, Program, Supervised, TrainingSetup
from diagnosis_bank.second.healthy.datasets import blobs, curve, make_generator, make_loader, split, stripes, tones
from diagnosis_bank.second.healthy.measures import (
    all_of,
    explains_variance,
    is_accurate,
    loss_fell,
    predictions,
    ran_to_end,
    step_output,
)
from pytorch_lightning.plugins import MixedPrecision
from torch import nn
from torch.utils.data import DataLoader, Sampler, TensorDataset


class _Attention(nn.Module):
    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.embed = nn.Linear(4, width)
        self.place = nn.Parameter(0.02 * torch.randn(8, width))
        layer = nn.TransformerEncoderLayer(width, 4, 64, dropout=0.0, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(width, 4)

    def forward(self, waves: torch.Tensor) -> torch.Tensor:
        return self.head(self.layers(self.embed(waves.view(-1, 8, 4)) + self.place).mean(1))


class _Warmed(Supervised):
    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=4e-3)
        total = int(self.trainer.estimated_stepping_batches)

        def factor(step: int) -> float:
            return step / 60 if step < 60 else 0.5 * (1 + math.cos(math.pi * (step - 60) / (total - 60)))

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def _warm_up(seed: int, return_dict: bool) -> TrainingSetup:
    """A transformer with a warm-up from exactly zero over sixty steps, and a cosine decay to zero."""
    train, validation = split(960, *tones(seed, 1200))
    module = _Warmed(_Attention(), nn.CrossEntropyLoss(), return_dict, torch.optim.AdamW)
    return TrainingSetup(
        module, make_loader(*train), make_loader(*validation, size=64), {"max_epochs": 6, "gradient_clip_val": 1.0}
    )


class _Restarted(Supervised):
    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.15, momentum=0.9)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, T_0=40, eta_min=1e-5)
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


def _small_cnn(classes: int = 4) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=2, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3), nn.ReLU(),
        nn.Flatten(), nn.Linear(144, classes),
    )  # fmt: skip


def _restarts(seed: int, return_dict: bool) -> TrainingSetup:
    """Warm restarts every forty steps, from 1e-5 to a rate that undoes some of the progress."""
    module = _Restarted(_small_cnn(), nn.CrossEntropyLoss(), return_dict, torch.optim.SGD)
    return TrainingSetup(module, make_loader(*stripes(seed, 1280, noise=0.9)), trainer={"max_epochs": 4})


class _OneCycle(Supervised):
    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-4)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=3e-2, total_steps=int(self.trainer.estimated_stepping_batches)
        )
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        scheduler.step()


def _one_cycle(seed: int, return_dict: bool) -> TrainingSetup:
    """One cycle up to 3e-2 and down to 1e-7: the last steps change almost nothing."""
    train, validation = split(1280, *curve(seed, 1600))
    network = nn.Sequential(nn.Linear(8, 48), nn.GELU(), nn.Linear(48, 48), nn.GELU(), nn.Linear(48, 1))
    module = _OneCycle(network, nn.SmoothL1Loss(), return_dict, torch.optim.AdamW)
    return TrainingSetup(module, make_loader(*train), make_loader(*validation, size=64), {"max_epochs": 5})


def _heavy_momentum(seed: int, return_dict: bool) -> TrainingSetup:
    """Momentum of 0.99: the loss oscillates before it converges."""
    network = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 1))
    module = Supervised(
        network, nn.MSELoss(), return_dict, lambda weights: torch.optim.SGD(weights, lr=3e-3, momentum=0.99)
    )
    return TrainingSetup(module, make_loader(*curve(seed)), trainer={"max_epochs": 8})


class _Lion(torch.optim.Optimizer):
    """Optimizer that uses the sign of the averaged gradient."""

    def __init__(self, params: Iterable[Any], lr: float = 1e-4, betas: tuple[float, float] = (0.9, 0.99)) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": 0.1})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                average = self.state[weight].setdefault("average", torch.zeros_like(weight))
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.sub_(average.lerp(weight.grad, 1 - group["betas"][0]).sign_(), alpha=group["lr"])
                average.lerp_(weight.grad, 1 - group["betas"][1])
        return loss


def _lion(seed: int, return_dict: bool) -> TrainingSetup:
    """A sign optimizer: all weights change by the same amount, including weights of dead inputs."""
    train, validation = split(960, *stripes(seed, 1200))
    module = Supervised(_small_cnn(), nn.CrossEntropyLoss(), return_dict, lambda weights: _Lion(weights, lr=1e-3))
    return TrainingSetup(module, make_loader(*train), make_loader(*validation, size=64), {"max_epochs": 4})


def _edge(seed: int, return_dict: bool) -> TrainingSetup:
    """Gradient descent on batches of 640 at the edge of stability: the loss fluctuates while it falls."""
    inputs, target = blobs(seed, 12800, apart=0.7)
    network = nn.Sequential(nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 4))
    module = Supervised(network, nn.CrossEntropyLoss(), return_dict, lambda weights: torch.optim.SGD(weights, lr=1.1))
    return TrainingSetup(module, make_loader(inputs, target, size=640), trainer={"max_epochs": 5})


def _jitters(outcome: Outcome) -> bool:
    rises = sum(after > before for before, after in itertools.pairwise(outcome.losses))
    return rises > 0.3 * len(outcome.losses) and outcome.mean_loss() < 0.5 * outcome.losses[0]


class _Scaled(Supervised):
    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.scales: list[float] = []

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.scales.append(float(getattr(self.trainer.precision_plugin, "scaler").get_scale()))  # noqa: B009


def _half(seed: int, return_dict: bool) -> TrainingSetup:
    """Half precision with a scale of 2**20: the first steps overflow and are skipped, as intended."""
    network = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 4))
    module = _Scaled(network, nn.CrossEntropyLoss(), return_dict, lambda weights: torch.optim.Adam(weights, lr=5e-3))
    plugin = MixedPrecision("16-mixed", device="cpu", scaler=torch.amp.GradScaler("cpu", init_scale=2.0**20))
    return TrainingSetup(module, make_loader(*blobs(seed)), trainer={"plugins": [plugin]})


def _overflowed(outcome: Outcome) -> bool:
    scales = getattr(outcome.after, "scales", [])
    return bool(scales) and min(scales) < 2.0**20 and is_accurate(0.9)(outcome)


def _gentle(seed: int, return_dict: bool) -> TrainingSetup:
    """A pretrained network continues at 1e-5: the loss cannot decrease much."""
    inputs, target = blobs(seed, 2880, apart=1.0)
    network = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 4))
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(network(inputs[:1280]), target[:1280]).backward()
        optimizer.step()
    train, validation = split(1280, inputs[1280:], target[1280:])
    module = Supervised(
        network, nn.CrossEntropyLoss(), return_dict, lambda weights: torch.optim.AdamW(weights, lr=1e-5)
    )
    return TrainingSetup(module, make_loader(*train), make_loader(*validation, size=64))


class _ByLength(Sampler[int]):
    """A data set with easy samples first."""

    def __init__(self, hardness: torch.Tensor) -> None:
        self.hardness = hardness

    def __len__(self) -> int:
        return len(self.hardness)

    def __iter__(self) -> Any:
        return iter((self.hardness + 0.1 * torch.rand(len(self.hardness))).argsort().tolist())


def _curriculum(seed: int, return_dict: bool) -> TrainingSetup:
    """Clean samples first and noisy ones last in every epoch: the loss rises within each epoch by design."""
    random = make_generator(seed)
    inputs, target = blobs(seed, 1280, apart=1.2)
    hardness = torch.rand(1280, generator=random)
    inputs = inputs + 3.0 * hardness.unsqueeze(1) * torch.randn(1280, 16, generator=random)
    data = DataLoader(TensorDataset(inputs, target), batch_size=32, sampler=_ByLength(hardness))
    network = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))
    module = Supervised(network, nn.CrossEntropyLoss(), return_dict, lambda weights: torch.optim.Adam(weights, lr=3e-3))
    return TrainingSetup(module, data, trainer={"max_epochs": 4})


def _curriculum_learned(outcome: Outcome) -> bool:
    if not ran_to_end(outcome):
        return False
    preds, target = predictions(outcome)
    return float((preds.argmax(1) == target).float().mean()) > 0.6 and outcome.losses[-1] > outcome.losses[-39]


class _Accumulates(pl.LightningModule):
    def __init__(self, return_dict: bool) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.return_dict = return_dict
        self.encoder = nn.Sequential(nn.Linear(8, 32), nn.ReLU())
        self.head = nn.Linear(32, 1)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(inputs))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        preds = self(batch[0])
        loss = F.mse_loss(preds, batch[1])
        self.manual_backward(loss / 4)
        if (batch_idx + 1) % 4 == 0:
            for optimizer in self.optimizers():  # pyright: ignore[reportGeneralTypeIssues]
                optimizer.step()
                optimizer.zero_grad()
        return step_output(self.return_dict, loss.detach(), preds.detach(), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.encoder.parameters(), lr=2e-2), torch.optim.Adam(self.head.parameters(), lr=2e-2)


def _accumulates(seed: int, return_dict: bool) -> TrainingSetup:
    """Manual accumulation over four batches of eight, with one optimizer per part."""
    return TrainingSetup(_Accumulates(return_dict), make_loader(*curve(seed, 1280), size=8))


class _Averaged(pl.LightningModule):
    def __init__(self, return_dict: bool) -> None:
        super().__init__()
        self.return_dict = return_dict
        self.net = _small_cnn()
        self.ema = torch.optim.swa_utils.AveragedModel(
            self.net, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9), use_buffers=True
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return (self.net if self.training else self.ema)(images)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        logits = self(batch[0])
        return step_output(self.return_dict, F.cross_entropy(logits, batch[1]), logits, batch[1])

    def on_before_zero_grad(self, optimizer: Any) -> None:
        self.ema.update_parameters(self.net)

    def configure_optimizers(self) -> Any:
        return torch.optim.RMSprop(self.net.parameters(), lr=3e-3)


def _averaged(seed: int, return_dict: bool) -> TrainingSetup:
    """torch's AveragedModel in the module: a copy that requires gradients, receives none and has no optimizer."""
    return TrainingSetup(_Averaged(return_dict), make_loader(*stripes(seed)), trainer={"accumulate_grad_batches": 2})


PROGRAMS = [
    Program(
        "transformer_warmed_up_from_zero",
        "sequence",
        _warm_up,
        frozenset(),
        is_accurate(0.8),
        "https://arxiv.org/abs/1706.03762",
    ),
    Program(
        "cosine_warm_restarts",
        "convolutional",
        _restarts,
        frozenset(),
        loss_fell(0.6),
        "https://arxiv.org/abs/1608.03983",
    ),
    Program(
        "one_cycle_to_nothing",
        "regression",
        _one_cycle,
        frozenset(),
        explains_variance(0.7),
        "https://arxiv.org/abs/1708.07120",
    ),
    Program(
        "momentum_of_099",
        "regression",
        _heavy_momentum,
        frozenset(),
        explains_variance(0.6),
        "https://distill.pub/2017/momentum/",
    ),
    Program(
        "lion_by_sign",
        "convolutional",
        _lion,
        frozenset(),
        is_accurate(0.85),
        "https://arxiv.org/abs/2302.06675",
    ),
    Program(
        "edge_of_stability",
        "dense",
        _edge,
        frozenset(),
        all_of(is_accurate(0.75), _jitters),
        "https://arxiv.org/abs/2103.00065",
    ),
    Program(
        "half_precision_first_overflow",
        "dense",
        _half,
        frozenset(),
        _overflowed,
        "https://github.com/Lightning-AI/pytorch-lightning/issues/21339",
    ),
    Program(
        "gentle_finetuning_of_the_good",
        "dense",
        _gentle,
        frozenset(),
        is_accurate(0.85),
        "https://github.com/hpcaitech/Open-Sora/issues/365",
    ),
    Program(
        "easy_samples_first",
        "dense",
        _curriculum,
        frozenset(),
        _curriculum_learned,
        "https://dl.acm.org/doi/10.1145/1553374.1553380",
    ),
    Program(
        "manual_accumulation_two_optimizers",
        "regression",
        _accumulates,
        frozenset(),
        explains_variance(0.6),
        "https://github.com/Lightning-AI/pytorch-lightning/issues/17957",
    ),
    Program(
        "averaged_model_inside",
        "convolutional",
        _averaged,
        frozenset(),
        all_of(loss_fell(0.5), is_accurate(0.8)),
        "https://github.com/lucidrains/ema-pytorch/pull/2",
    ),
]
