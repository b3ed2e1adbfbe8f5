"""Small training runs that combine features of Lightning and torch, for ``random_kills.py --matrix``.

Each feature has state that a resume could fail to restore. :func:`draw` combines features at random. :func:`train`
trains one combination and returns everything that an exact resume must reproduce.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import (
    BackboneFinetuning,
    EarlyStopping,
    EMAWeightAveraging,
    GradientAccumulationScheduler,
    LearningRateMonitor,
    ModelCheckpoint,
    StochasticWeightAveraging,
)
from pytorch_lightning.plugins import MixedPrecision
from pytorch_lightning.utilities import CombinedLoader
from torch import nn, optim
from torch.nn.utils import parametrizations
from torch.optim import lr_scheduler
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, RandomSampler, WeightedRandomSampler
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

from stormproof import (
    CheckpointRecovery,
    DeadNeuronDetector,
    DivergenceGuard,
    GradientNormMonitor,
    StepTimer,
    TrainingHealth,
    resumable,
)
from tests.support.exact_resume_training import JsonLinesLogger

SAMPLES, BATCH, EPOCHS = 96, 4, 3


# --- features ---------------------------------------------------------------------------------------------------------

OPTIMIZERS: dict[str, Callable[[Any], optim.Optimizer]] = {
    "SGD": lambda parameters: optim.SGD(parameters, lr=0.05, momentum=0.9, nesterov=True),
    "Adam": lambda parameters: optim.Adam(parameters, lr=0.01, amsgrad=True),
    "AdamW": lambda parameters: optim.AdamW(parameters, lr=0.01),
    "RMSprop": lambda parameters: optim.RMSprop(parameters, lr=0.005, centered=True, momentum=0.5),
    "Adagrad": lambda parameters: optim.Adagrad(parameters, lr=0.05),
    "NAdam": lambda parameters: optim.NAdam(parameters, lr=0.01),
    "RAdam": lambda parameters: optim.RAdam(parameters, lr=0.01),
    "ASGD": lambda parameters: optim.ASGD(parameters, lr=0.05, t0=10),
    "Adafactor": lambda parameters: optim.Adafactor(parameters, lr=0.01),
    "Rprop": lambda parameters: optim.Rprop(parameters, lr=0.01),
    "LBFGS": lambda parameters: optim.LBFGS(parameters, lr=0.1, max_iter=3),
}
SCHEDULES: dict[str, Callable[[Any], Any]] = {
    "constant": lambda _: None,
    "step": lambda optimizer: lr_scheduler.StepLR(optimizer, 1, gamma=0.7),
    "cosine restarts": lambda optimizer: _by_step(lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 7)),
    "one cycle": lambda optimizer: _by_step(lr_scheduler.OneCycleLR(optimizer, 0.05, total_steps=200)),
    "plateau": lambda optimizer: {
        "scheduler": lr_scheduler.ReduceLROnPlateau(optimizer, patience=0), "monitor": "train/loss_epoch"
    },
    "sequence": lambda optimizer: _by_step(
        lr_scheduler.SequentialLR(
            optimizer,
            [lr_scheduler.LinearLR(optimizer, total_iters=5), lr_scheduler.ExponentialLR(optimizer, 0.98)],
            [5],
        )
    ),
}  # fmt: skip
PRECISIONS: dict[str, Callable[[], dict[str, Any]]] = {
    "32-true": dict,
    "bf16-mixed": lambda: {"precision": "bf16-mixed"},
    "16-mixed": lambda: {
        "plugins": MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**14, growth_interval=4))
    },
    "64-true": lambda: {"precision": "64-true"},
}
VALIDATIONS: dict[str, dict[str, Any]] = {
    "each epoch": {},
    "every 5 batches": {"val_check_interval": 5},
    "every 2nd epoch": {"check_val_every_n_epoch": 2},
    "across epochs": {"val_check_interval": 7, "check_val_every_n_epoch": None},
    "two batches": {"limit_val_batches": 2, "num_sanity_val_steps": 0},
    "none": {"limit_val_batches": 0},
}
CALLBACKS: dict[str, Callable[[], list[pl.Callback]]] = {
    "none": list,
    "EarlyStopping": lambda: [EarlyStopping("train/loss_epoch", patience=1, check_on_train_epoch_end=True)],
    "EMAWeightAveraging": lambda: [EMAWeightAveraging(decay=0.9)],
    "StochasticWeightAveraging": lambda: [StochasticWeightAveraging(0.01, swa_epoch_start=2)],
    "ModelCheckpoint": lambda: [ModelCheckpoint(monitor="train/loss_step", save_top_k=2, every_n_train_steps=5)],
    "LearningRateMonitor": lambda: [LearningRateMonitor(logging_interval="step")],
    "GradientAccumulationScheduler": lambda: [GradientAccumulationScheduler({0: 1, 1: 3, 2: 2})],
    "BackboneFinetuning": lambda: [BackboneFinetuning(1, lambda _: 1.5)],
    "monitors": lambda: [StepTimer(), GradientNormMonitor(every_n_steps=2, table=False),
                                DeadNeuronDetector(every_n_steps=3, table=False), TrainingHealth()],
    "DivergenceGuard": lambda: [DivergenceGuard()],
    "own generator": lambda: [Jitter()],
    "saved counter": lambda: [SavedCounter()],
    "unsaved counter": lambda: [Counter()],
}  # fmt: skip


def _by_step(schedule: Any) -> dict[str, Any]:
    return {"scheduler": schedule, "interval": "step"}


class Jitter(pl.Callback):
    """Scales the loss by a random number from a generator of its own."""

    def __init__(self) -> None:
        self.generators = {"numpy": [np.random.default_rng(5)]}

    def factor(self) -> float:
        return 1 + 0.1 * float(self.generators["numpy"][0].random())


class Counter(pl.Callback):
    """Scales the loss by the number of its calls, which is not in the checkpoint."""

    def __init__(self) -> None:
        self.calls = 0

    def factor(self) -> float:
        self.calls += 1
        return 1 + 0.01 * self.calls


class SavedCounter(Counter):
    def state_dict(self) -> dict[str, Any]:
        return {"calls": self.calls}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.calls = state_dict["calls"]


class Samples(Dataset):
    """Draws augmentation from all three global generators."""

    def __init__(self, count: int = SAMPLES) -> None:
        self.inputs = torch.randn(count, 6, generator=torch.Generator().manual_seed(1))
        self.targets = (self.inputs.sum(1) > 0).long() + (self.inputs[:, 0] > 1).long()

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        noise = torch.rand(6) + random.random() + float(np.random.rand())  # noqa: NPY002
        return self.inputs[index] + 0.1 * noise, self.targets[index]


class OwnGenerator(Samples):
    """Draws augmentation from its own generator. A warning names it."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = np.random.default_rng(3)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.inputs[index] + 0.1 * float(self.generator.random()), self.targets[index]


class Stream(IterableDataset):
    """An iterable data set that saves its position."""

    def __init__(self) -> None:
        self.samples, self.position = Samples(), 0

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        while self.position < len(self.samples):
            self.position += 1
            yield self.samples[self.position - 1]
        self.position = 0

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.position = state_dict["position"]


LOADERS: dict[str, Callable[..., Any]] = {
    "shuffled": lambda **options: resumable(DataLoader(Samples(), BATCH, shuffle=True, drop_last=True, **options)),
    "in order": lambda **options: resumable(DataLoader(Samples(), BATCH, **options)),
    "weighted sampler": lambda **options: resumable(
        DataLoader(Samples(), BATCH, sampler=WeightedRandomSampler(torch.arange(SAMPLES).double(), 72), **options)
    ),
    "batch sampler": lambda **options: resumable(
        DataLoader(Samples(), batch_sampler=BatchSampler(RandomSampler(Samples()), BATCH, drop_last=False), **options)
    ),
    "stateful stream": lambda: resumable(DataLoader(Stream(), BATCH)),
    "two loaders": lambda **options: CombinedLoader(
        [
            resumable(DataLoader(Samples(), BATCH, shuffle=True, **options), seed=1),
            resumable(DataLoader(Samples(40), BATCH, shuffle=True, **options), seed=2),
        ],
        "max_size_cycle",
    ),
    "generator of its own": lambda: resumable(DataLoader(OwnGenerator(), BATCH, shuffle=True)),
    "not wrapped": lambda **options: DataLoader(Samples(), BATCH, shuffle=True, **options),
}
WORKERS: dict[str, dict[str, Any]] = {
    "0": {},
    "2": {"num_workers": 2},
    "1, persistent": {"num_workers": 1, "persistent_workers": True},
}


class Network(pl.LightningModule):
    """Batch norm, dropout, running metrics and means. Subclasses add state in other places."""

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self.spec = spec
        self.backbone = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2))
        self.head = nn.Linear(8, 3)
        self.scores = MetricCollection({"f1": MulticlassF1Score(3), "accuracy": MulticlassAccuracy(3)})

    def logits(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.head(self.backbone(inputs))

    def factor(self, loss: torch.Tensor) -> Any:
        return 1.0

    def loss(self, batch: Any) -> torch.Tensor:
        inputs, targets = batch[0] if isinstance(batch[0], list | tuple) else batch
        inputs = inputs.to(self.head.weight.dtype)
        logits = self.logits(inputs + 0.01 * torch.randn_like(inputs))
        loss = nn.functional.cross_entropy(logits.float(), targets)
        self.scores.update(logits.detach().float(), targets)
        factors = [callback.factor() for callback in self.trainer.callbacks if hasattr(callback, "factor")]
        return loss * self.factor(loss.detach()) * float(np.prod(factors))

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = self.loss(batch)
        self.log("train/loss", loss, on_step=True, on_epoch=True, sync_dist=True)
        return loss

    def on_train_epoch_end(self) -> None:
        self.log_dict(self.scores.compute())
        self.scores.reset()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        inputs, targets = batch
        inputs = inputs.to(self.head.weight.dtype)
        self.log("val/loss", nn.functional.cross_entropy(self.logits(inputs).float(), targets), sync_dist=True)

    def configure_optimizers(self) -> Any:
        parameters = [parameter for parameter in self.parameters() if parameter.requires_grad]
        optimizer = OPTIMIZERS[self.spec.optimizer](parameters)
        schedule = SCHEDULES[self.spec.schedule](optimizer)
        return optimizer if schedule is None else ([optimizer], [schedule])


class Recurrent(Network):
    def __init__(self, spec: Spec) -> None:
        super().__init__(spec)
        self.lstm = nn.LSTM(6, 6, num_layers=2, dropout=0.2, batch_first=True)

    def logits(self, inputs: torch.Tensor) -> torch.Tensor:
        return super().logits(self.lstm(inputs[:, None])[0][:, 0])


class NormalizedWeights(Network):
    def __init__(self, spec: Spec) -> None:
        super().__init__(spec)
        self.backbone[0] = parametrizations.spectral_norm(nn.Linear(6, 8))
        self.head = parametrizations.weight_norm(nn.Linear(8, 3))


class OtherOrder(Network):
    """Registers a large layer after those that use it, so that DDP rebuilds its buckets."""

    def __init__(self, spec: Spec) -> None:
        super().__init__(spec)
        self.wide = nn.Linear(6, 600)
        self.back = nn.Linear(600, 6)

    def logits(self, inputs: torch.Tensor) -> torch.Tensor:
        return super().logits(self.back(torch.tanh(self.wide(inputs))))


class HiddenBuffer(Network):
    def __init__(self, spec: Spec) -> None:
        super().__init__(spec)
        self.register_buffer("mean", torch.zeros(()), persistent=False)

    def factor(self, loss: torch.Tensor) -> Any:
        self.mean.mul_(0.9).add_(0.1 * loss)
        return 1 + self.mean.detach().clone()


class OwnGenerators(Network):
    def __init__(self, spec: Spec) -> None:
        super().__init__(spec)
        self.generator, self.draw = torch.Generator().manual_seed(3), random.Random(4).random

    def factor(self, loss: torch.Tensor) -> Any:
        return 1 + torch.rand((), generator=self.generator) * self.draw()


class ListedMetric(Network):
    def __init__(self, spec: Spec) -> None:
        super().__init__(spec)
        self.listed = [MeanMetric()]

    def factor(self, loss: torch.Tensor) -> Any:
        self.listed[0].update(loss)
        return 1 + self.listed[0].mean_value / self.listed[0].weight


class ReplayBuffer(Network):
    """Keeps losses in a list that is not in the checkpoint. A warning names it."""

    def __init__(self, spec: Spec) -> None:
        super().__init__(spec)
        self.past: list[float] = []

    def factor(self, loss: torch.Tensor) -> Any:
        self.past.append(float(loss))
        return 1 + float(np.mean(self.past))


class ExtraState(Network):
    def __init__(self, spec: Spec) -> None:
        super().__init__(spec)
        self.calls = 0

    def factor(self, loss: torch.Tensor) -> Any:
        self.calls += 1
        return 1 + 0.01 * self.calls

    def get_extra_state(self) -> dict[str, Any]:
        return {"calls": self.calls}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.calls = state["calls"]


class Manual(Network):
    """Two optimizers: one steps each batch, the other accumulates gradients over three batches."""

    def __init__(self, spec: Spec) -> None:
        super().__init__(spec)
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
        fast, slow = self.optimizers()
        fast.zero_grad()
        loss = self.loss(batch)
        self.manual_backward(loss)
        fast.step()
        if batch_idx % 3 == 2:
            slow.step()
            slow.zero_grad()
        self.log("train/loss", loss.detach(), on_step=True, on_epoch=True, sync_dist=True)

    def configure_optimizers(self) -> Any:
        return [OPTIMIZERS[self.spec.optimizer](part.parameters()) for part in (self.backbone, self.head)]


class DecayingGradients(Network):
    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: optim.Optimizer) -> None:
        for parameter in self.parameters():
            if parameter.grad is not None:
                parameter.grad.mul_(0.5)


MODULES = {kind.__name__: kind for kind in (Network, *Network.__subclasses__())}
RANKS = {"1": 1, "2": 2, "3": 3, "4": 4}
ACCUMULATED = {"1": 1, "3": 3}
FEATURES: dict[str, dict[str, Any]] = {
    "optimizer": OPTIMIZERS, "schedule": SCHEDULES, "precision": PRECISIONS, "validation": VALIDATIONS,
    "callback": CALLBACKS, "loader": LOADERS, "workers": WORKERS, "module": MODULES, "accumulated": ACCUMULATED,
    "ranked": RANKS,
}  # fmt: skip
WEIGHTS = {"ranked": (6, 2, 2, 1)}


# --- runs -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Spec:
    """One combination: one name from each group of ``FEATURES``."""

    optimizer: str
    schedule: str
    precision: str
    validation: str
    callback: str
    loader: str
    workers: str
    module: str
    accumulated: str
    ranked: str

    @property
    def ranks(self) -> int:
        return RANKS[self.ranked]

    def __str__(self) -> str:
        return ", ".join(f"{group} {getattr(self, group)}" for group in FEATURES)


def draw(generator: random.Random) -> Spec:
    """Draws a combination that Lightning accepts."""
    while True:
        samples = {group: generator.choices(list(kinds), WEIGHTS.get(group))[0] for group, kinds in FEATURES.items()}
        spec = Spec(**samples)
        if _is_possible(spec):
            return spec


def _is_possible(spec: Spec) -> bool:
    scaled = spec.precision == "16-mixed"
    averaged = spec.callback in {"EMAWeightAveraging", "StochasticWeightAveraging"}
    manual = spec.module == "Manual"
    return not any([
        manual and (spec.schedule != "constant" or spec.accumulated != "1" or scaled or averaged),
        manual and spec.callback in {"GradientAccumulationScheduler", "BackboneFinetuning", "DivergenceGuard"},
        spec.optimizer == "LBFGS" and (manual or scaled or spec.callback in {"DivergenceGuard", "BackboneFinetuning"}),
        spec.optimizer == "LBFGS" and (spec.accumulated != "1" or spec.module == "DecayingGradients"),
        spec.module == "Recurrent" and scaled,  # not implemented on the CPU
        spec.schedule == "one cycle" and spec.optimizer in {"Adagrad", "ASGD", "Adafactor", "Rprop", "LBFGS"},
        spec.callback == "StochasticWeightAveraging" and (spec.schedule not in {"constant", "step"} or spec.ranks > 1),
        spec.callback == "StochasticWeightAveraging" and spec.loader == "stateful stream",  # needs a length
        spec.callback == "StochasticWeightAveraging" and scaled,  # the last epoch has steps without gradients
        spec.callback == "GradientAccumulationScheduler" and spec.accumulated != "1",
        spec.callback == "BackboneFinetuning" and (spec.ranks > 1 or spec.schedule != "constant"),
        spec.loader == "stateful stream" and (spec.ranks > 1 or spec.workers != "0"),
        spec.loader == "stateful stream" and "batches" in spec.validation,
        spec.loader == "batch sampler" and spec.ranks > 1,
        spec.precision == "64-true" and averaged,
        spec.loader == "generator of its own" and spec.workers != "0",
        averaged and spec.module in {"NormalizedWeights", "ExtraState"},
    ])  # fmt: skip


def train(spec: Spec, folder: Path, extra: list[pl.Callback] | None = None) -> dict[str, Any]:
    """Trains one combination in ``folder``, resuming if possible, and returns the results that must be equal."""
    torch.set_num_threads(1)
    pl.seed_everything(7, verbose=False)
    recovery = CheckpointRecovery(folder / "checkpoints", every_n_train_steps=2)
    rows = JsonLinesLogger(folder / f"rows{os.environ.get('LOCAL_RANK', '0')}.jsonl")
    callbacks = [*CALLBACKS[spec.callback](), *(extra or []), recovery]
    trainer = pl.Trainer(
        max_epochs=EPOCHS,
        default_root_dir=folder,
        accelerator="cpu",
        devices=spec.ranks,
        strategy="auto" if spec.ranks == 1 else "ddp",
        accumulate_grad_batches=ACCUMULATED[spec.accumulated],
        logger=rows,
        log_every_n_steps=2,
        callbacks=callbacks,
        enable_checkpointing=spec.callback == "ModelCheckpoint",
        enable_progress_bar=False,
        enable_model_summary=False,
        **VALIDATIONS[spec.validation],
        **PRECISIONS[spec.precision](),
    )
    module = MODULES[spec.module](spec)
    loaders = (LOADERS[spec.loader](**WORKERS[spec.workers]), DataLoader(Samples(24), BATCH))
    trainer.fit(module, *loaders, ckpt_path=recovery.latest_checkpoint())
    return {
        "weights": module.state_dict(),
        "buffers": dict(module.named_buffers()),
        "optimizers": [optimizer.state_dict() for optimizer in trainer.optimizers],
        # None if the run had already finished: SWA then does not build its schedule
        "schedules": [config.scheduler.state_dict() for config in trainer.lr_scheduler_configs] or None,
        "metrics": {name: float(value) for name, value in sorted(trainer.callback_metrics.items())},
        "random": [random.random(), float(np.random.rand()), float(torch.rand(()))],  # noqa: NPY002
        "step": trainer.global_step,
        "rows": rows.read(),
    }
