"""Networks and variants of scripts/benchmarks/monitoring.py."""

from __future__ import annotations

import functools
import importlib.util
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import WandbLogger
from pytorch_lightning.loggers.logger import Logger
from pytorch_lightning.utilities import grad_norm
from torch import nn

from stormproof import DeadNeuronDetector, DivergenceGuard, GradientNormMonitor, TrainingHealth

DEFAULT_TARGET, EVERY_STEP_TARGET = 1.01, 1.05
CADENCE = 10  # interval of the monitors, and ``log_every_n_steps``
HAS_WANDB = importlib.util.find_spec("wandb") is not None


class Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(width), nn.MultiheadAttention(width, 4, batch_first=True)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        normed = self.norm(inputs)
        return inputs + self.attention(normed, normed, normed, need_weights=False)[0]


class FeedForward(nn.Module):
    """Feed-forward block whose activation is a module, so that hooks observe it, unlike nn.TransformerEncoderLayer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.ReLU(), nn.Linear(4 * width, width)
        )

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs + self.layers(inputs)


def mlp() -> nn.Sequential:
    widths = [784, 560, 560, 560]
    hidden = [(nn.Linear(before, after), nn.ReLU()) for before, after in itertools.pairwise(widths)]
    return nn.Sequential(nn.Flatten(), *itertools.chain(*hidden), nn.Linear(widths[-1], 10))


def cnn() -> nn.Sequential:
    sizes = [(1, 16, 1), (16, 32, 2), (32, 64, 2)]  # channels before and after, stride
    stages = [
        (nn.Conv2d(before, after, 3, stride, padding=1), nn.BatchNorm2d(after), nn.ReLU())
        for before, after, stride in sizes
    ]
    return nn.Sequential(*itertools.chain(*stages), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def transformer() -> nn.Sequential:
    blocks = [(Attention(96), FeedForward(96)) for _ in range(3)]
    return nn.Sequential(
        nn.Flatten(1, 2), nn.Linear(28, 96), *itertools.chain(*blocks), nn.Flatten(), nn.Linear(28 * 96, 10)
    )


class Workload(NamedTuple):
    network: Callable[[], nn.Sequential]
    optimizer: Callable[..., torch.optim.Optimizer]
    batch_size: int


WORKLOADS = {
    "mlp": Workload(mlp, torch.optim.SGD, 128),
    "cnn": Workload(cnn, torch.optim.SGD, 32),
    "transformer": Workload(transformer, torch.optim.AdamW, 8),
}


class NullLogger(Logger):
    """Discards all values."""

    name, version = "null", 0

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        pass

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass


@functools.cache  # one W&B run per process
def offline_wandb() -> Logger:
    import wandb  # noqa: PLC0415 (optional; imported only if it is measured)

    return WandbLogger(experiment=wandb.init(settings=wandb.Settings(console="off", x_disable_stats=True)))


class Watch(pl.Callback):
    """Calls ``wandb.watch`` and commits its row at logging steps, as a logged loss would."""

    def __init__(self, **options: Any) -> None:
        self.options = options

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        trainer.logger.experiment.watch(pl_module.network, **self.options)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        trainer.logger.experiment.unwatch(pl_module.network)

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        if trainer.global_step % CADENCE == 0:
            trainer.logger.experiment.log({})


class LightningGradNorm(pl.Callback):
    def __init__(self, every_n_steps: int) -> None:
        self.every_n_steps = every_n_steps

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any) -> None:
        if (trainer.global_step + 1) % self.every_n_steps == 0:  # includes Lightning's logging steps
            pl_module.log_dict(grad_norm(pl_module, norm_type=2))


class Variant(NamedTuple):
    callbacks: Callable[[], list[pl.Callback]] = list
    target: float | None = None
    logger: Callable[[], Logger] = NullLogger


CONTROLS = {"bare": Variant(), "bare again": Variant()}
OURS = {
    "GradientNormMonitor": Variant(lambda: [GradientNormMonitor(CADENCE)], DEFAULT_TARGET),
    "GradientNormMonitor, every step": Variant(lambda: [GradientNormMonitor(every_n_steps=1)], EVERY_STEP_TARGET),
    "DeadNeuronDetector": Variant(lambda: [DeadNeuronDetector(CADENCE)], DEFAULT_TARGET),
    "DeadNeuronDetector, every step": Variant(lambda: [DeadNeuronDetector(every_n_steps=1)], EVERY_STEP_TARGET),
    "DivergenceGuard": Variant(lambda: [DivergenceGuard("skip")]),
    "DivergenceGuard, every 10th step": Variant(lambda: [DivergenceGuard("stop", every_n_steps=10)]),
    "both": Variant(lambda: [GradientNormMonitor(CADENCE), DeadNeuronDetector(CADENCE)], DEFAULT_TARGET),
    "both, every step": Variant(
        lambda: [GradientNormMonitor(every_n_steps=1), DeadNeuronDetector(every_n_steps=1)], EVERY_STEP_TARGET
    ),
    "both and TrainingHealth": Variant(
        lambda: [GradientNormMonitor(CADENCE), DeadNeuronDetector(CADENCE), TrainingHealth(every_n_steps=100)],
        DEFAULT_TARGET,
    ),
}
GRAD_NORM = {
    "grad_norm, 10th": Variant(lambda: [LightningGradNorm(10)]),
    "grad_norm, every step": Variant(lambda: [LightningGradNorm(1)]),
}
WANDB = {
    "wandb.watch gradients, 1000th": Variant(lambda: [Watch(log="gradients")], None, offline_wandb),
    "wandb.watch gradients, every step": Variant(lambda: [Watch(log="gradients", log_freq=1)], None, offline_wandb),
    "wandb.watch all, 1000th": Variant(lambda: [Watch(log="all")], None, offline_wandb),
    "wandb.watch all, every step": Variant(lambda: [Watch(log="all", log_freq=1)], None, offline_wandb),
}
GROUPS = [OURS, GRAD_NORM, *([WANDB] if HAS_WANDB else [])]
VARIANTS = {name: variant for group in (CONTROLS, *GROUPS) for name, variant in group.items()}
