"""A small training run that uses all state that an exact resume must restore."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import (
    EarlyStopping,
    EMAWeightAveraging,
    GradientAccumulationScheduler,
    ModelCheckpoint,
)
from pytorch_lightning.plugins import MixedPrecision
from pytorch_lightning.strategies import ModelParallelStrategy
from pytorch_lightning.utilities import CombinedLoader
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.utils._pytree import tree_map
from torch.utils.data import DataLoader, Dataset
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

from stormproof import CheckpointRecovery, DeadNeuronDetector, GradientNormMonitor, StepTimer, resumable
from stormproof.distributed.dtensor import to_local

BATCH_SIZE = 4
SYNC_SAVE = {"async_save": False}
"""For the recovery, where a test must know what is committed when a process is killed."""


@dataclass(frozen=True)
class Cell:
    """One cell of the matrix. By default, 15 batches per epoch, which is not a multiple of 4."""

    workers: int = 0
    accumulate: int = 1
    validate_every: int | None = None  # in batches; once per epoch by default
    ranks: int = 1
    ema: bool = False
    precision: str = "32-true"
    manual_optimization: bool = False
    every_n_train_steps: int = 1
    resumable_validation: bool = False
    uses_total_steps: bool = False
    has_accumulation_schedule: bool = False  # changes per epoch
    unfreezes_layers: bool = False  # unfreezes the first half of the network in the second epoch
    has_second_loader: bool = False  # a shorter loader, exhausted before the end of the epoch
    sharded: bool = False
    saves_shards: bool = False  # each rank saves its part, with `sharded`
    tensor_parallel: int = 1  # size of the tensor-parallel groups, with `sharded`
    samples: int = 60
    epochs: int = 3

    @property
    def data_ranks(self) -> int:
        return self.ranks // self.tensor_parallel

    @property
    def steps_per_epoch(self) -> int:
        batches = -(-self.samples // (BATCH_SIZE * self.data_ranks))
        return -(-batches // self.accumulate)

    @property
    def validated_step(self) -> int:
        """Returns the step of a validation in the first epoch. With mid-epoch validation, of the second one."""
        return -(-2 * self.validate_every // self.accumulate) if self.validate_every else self.steps_per_epoch

    @property
    def steps(self) -> int:
        return self.epochs * self.steps_per_epoch


class NoisyDataset(Dataset):
    """Samples augmented with all three global generators. Each sample includes its index."""

    def __init__(self, count: int, noise: float = 0.1) -> None:
        self.noise = noise
        self.inputs = torch.randn(count, 6, generator=torch.Generator().manual_seed(1))
        self.targets = (self.inputs.sum(1) > 0).long() + (self.inputs[:, 0] > 1).long()

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor, int]:
        noise = torch.rand(6) + random.random() + float(np.random.rand())  # noqa: NPY002
        return self.inputs[index] + self.noise * noise, self.targets[index], index


class StatefulModule(pl.LightningModule):
    """A module with dropout, batch norm, two optimizers with schedules, running means and metrics."""

    def __init__(self, cell: Cell) -> None:
        super().__init__()
        self.cell = cell
        self.automatic_optimization = not cell.manual_optimization
        self.net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3))
        self.accuracy = MulticlassAccuracy(3)
        self.collection = MetricCollection({"f1": MulticlassF1Score(3), "top": MulticlassAccuracy(3, average="micro")})
        self.val_accuracy = MulticlassAccuracy(3)

    def configure_model(self) -> None:
        if self.cell.tensor_parallel > 1:
            plan = {"0": ColwiseParallel(output_layouts=Replicate()), "4": RowwiseParallel(input_layouts=Replicate())}
            parallelize_module(self.net, self.device_mesh["tensor_parallel"], plan)
        if self.cell.sharded and (self.cell.tensor_parallel == 1 or self.cell.data_ranks > 1):
            for part in (self.net[0], self.net):
                fully_shard(part, mesh=self.device_mesh["data_parallel"])

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Adds the samples of the shorter loader as noise until it is exhausted."""
        if not isinstance(batch, dict):
            return batch
        inputs, targets, index = batch["long"]
        noise = 0.0 if batch["short"] is None else batch["short"][0].mean()
        return inputs + noise, targets, index

    def on_train_epoch_start(self) -> None:
        if self.cell.unfreezes_layers and self.current_epoch < 2:
            self.net[:2].requires_grad_(self.current_epoch == 1).train(self.current_epoch == 1)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        inputs, targets, _ = batch
        logits = self.net(inputs + 0.01 * torch.randn_like(inputs))
        loss = nn.functional.cross_entropy(logits, targets)
        if self.cell.manual_optimization:
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
        self.accuracy(logits, targets)
        self.collection.update(logits.detach(), targets)
        self.log("train/loss", loss, on_step=True, on_epoch=True, sync_dist=True)
        self.log("train/largest", loss.detach(), on_epoch=True, on_step=False, reduce_fx="max", sync_dist=True)
        self.log("train/accuracy", self.accuracy, on_step=False, on_epoch=True)
        if batch_idx == 0:
            self.log("train/first", loss.detach(), on_step=False, on_epoch=True, sync_dist=True)
        return loss

    def on_train_epoch_end(self) -> None:
        self.log_dict(self.collection.compute())
        self.collection.reset()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        inputs, targets, _ = batch
        logits = self.net(inputs + 0.01 * torch.randn_like(inputs))
        self.val_accuracy(logits, targets)
        self.log("val/loss", nn.functional.cross_entropy(logits, targets), sync_dist=True)
        self.log("val/accuracy", self.val_accuracy)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.02)
        if self.cell.manual_optimization:
            return optimizer
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, factor=0.7)
        on_train = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=1, factor=0.9)
        length = int(self.trainer.estimated_stepping_batches) if self.cell.uses_total_steps else 1000
        by_step = torch.optim.lr_scheduler.LambdaLR(optimizer, _Warmup(length))
        return [optimizer], [
            {"scheduler": by_step, "interval": "step"},
            {"scheduler": plateau, "monitor": "val/loss"},
            {"scheduler": on_train, "monitor": "train/loss_epoch"},
        ]


class _Warmup:
    def __init__(self, length: int) -> None:
        self.length = length

    def __call__(self, step: int) -> float:
        return min(1.0, (step + 1) / 5) * (1 - step / (self.length + 1))


class Journal(pl.Callback):
    """Records events. Its state is in the checkpoint, so an exact resume has the same journal.

    Each entry is one string, because a checkpoint of many numbers takes longer to save.
    """

    def __init__(self) -> None:
        self._lines: list[str] = []

    @property
    def entries(self) -> list[Any]:
        return [json.loads(line) for line in self._lines]

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._add(
            "batch", trainer.current_epoch, batch_idx, trainer.global_step, batch[2].tolist(), float(batch[0].sum()),
            float(outputs["loss"]) if outputs else 0.0, trainer.optimizers[0].param_groups[0]["lr"],
        )  # fmt: skip

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        if not trainer.sanity_checking:
            self._add("validation", trainer.global_step, _to_floats(trainer.callback_metrics))

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self._add("epoch", trainer.current_epoch, _to_floats(trainer.callback_metrics))

    def state_dict(self) -> dict[str, Any]:
        return {"lines": list(self._lines)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._lines = list(state_dict["lines"])

    def _add(self, *values: Any) -> None:
        self._lines.append(json.dumps(values))


class JsonLinesLogger(pl.loggers.Logger):
    """A logger that appends rows to a file, over all attempts of a run."""

    name, version = "rows", 0

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    def log_metrics(self, metrics: Any, step: Any = None) -> None:
        if any(name.startswith(("time/", "recovery/", "checkpoint/")) for name in metrics):  # these differ by design
            return
        row = {f"{name}@{step}": float(value) for name, value in metrics.items()}
        with self._path.open("ab", buffering=0) as file:  # a single write, so that a kill cannot leave a partial row
            file.write(json.dumps(row).encode() + b"\n")

    def read(self) -> dict[str, float]:
        """Returns all values by name and step. The last row of a step counts."""
        rows: dict[str, float] = {}
        self._path.touch()
        for line in self._path.read_text().splitlines():
            rows |= json.loads(line)
        return rows

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None: ...


def _local_shard(value: Any) -> Any:
    return to_local(value) if isinstance(value, torch.Tensor) else value


def _tuples_to_lists(state: dict[str, Any]) -> dict[str, Any]:
    """Converts tuples to lists, as torch does if it distributes optimizer state over ranks."""
    groups = [{key: list(value) if isinstance(value, tuple) else value for key, value in group.items()}
              for group in state["param_groups"]]  # fmt: skip
    return {**state, "param_groups": groups}


def _to_floats(metrics: Any) -> dict[str, float]:
    return {name: float(value) for name, value in sorted(metrics.items())}


def _strip_folder(state: Any, folder: str) -> Any:
    """Returns a state without absolute paths and without entries that Lightning saves but never reads."""
    if isinstance(state, dict):
        pairs = [(key, value) for key, value in state.items() if key != "current_score"]
        return {_strip_folder(key, folder): _strip_folder(value, folder) for key, value in pairs}
    return state.replace(folder, "") if isinstance(state, str) else state


def train(
    cell: Cell,
    folder: Path,
    extra: list[pl.Callback] | None = None,
    *,
    module: pl.LightningModule | None = None,
    recovery: dict[str, Any] | None = None,
    trainer: dict[str, Any] | None = None,
    stopping: dict[str, Any] | None = None,
    resume: bool = True,
    start_over: bool = False,
    arrange: Callable[[list[pl.Callback]], list[pl.Callback]] = list,
) -> dict[str, Any]:
    """Trains a cell in ``folder``, resuming if possible, and returns all results that must be equal.

    Args:
        cell: Cell to train.
        folder: Folder of the run.
        extra: Additional callbacks.
        module: Replaces the default module.
        recovery: Arguments of CheckpointRecovery.
        trainer: Arguments of the Trainer.
        stopping: Arguments of EarlyStopping.
        resume: If True, ``fit`` resumes from the latest checkpoint.
        start_over: If True, starts again if all checkpoints are damaged.
        arrange: Function that reorders or removes callbacks. The last callback is the recovery.
    """
    pl.seed_everything(7, verbose=False)
    model = module or StatefulModule(cell)
    train_loader, val_loader = _loaders(cell)
    options = {"every_n_train_steps": cell.every_n_train_steps, "monitor": "val/loss", **(recovery or {})}
    recover = CheckpointRecovery(**{"dirpath": folder / "checkpoints", **options})
    journal, rows = Journal(), JsonLinesLogger(folder / f"rows{os.environ.get('LOCAL_RANK', '0')}.jsonl")
    model_checkpoint = ModelCheckpoint(
        folder / "models", monitor="val/loss", save_top_k=2, enable_version_counter=False, filename="{epoch}-{step}"
    )
    monitors: list[Any] = [GradientNormMonitor(every_n_steps=3, table=False)]
    if cell.tensor_parallel == 1:  # otherwise refused
        monitors.append(DeadNeuronDetector(every_n_steps=3, table=False))
    callbacks = [
        StepTimer(),
        journal,
        *monitors,
        EarlyStopping("val/loss", **{"patience": 50, **(stopping or {})}),
        model_checkpoint,
    ]
    ema = [EMAWeightAveraging(decay=0.9)] if cell.ema else []
    callbacks += [] if cell.sharded else ema
    callbacks += [GradientAccumulationScheduler({0: 1, 1: 3, 2: 2})] if cell.has_accumulation_schedule else []
    settings: dict[str, Any] = {
        "max_epochs": cell.epochs,
        "logger": rows,
        "accelerator": "cpu",
        "devices": cell.ranks,
        "strategy": _strategy(cell),
        "accumulate_grad_batches": cell.accumulate,
        "val_check_interval": cell.validate_every or 1.0,
        **_precision(cell),
        "log_every_n_steps": 3,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    arranged = arrange([*callbacks, *(extra or []), recover])
    arranged += ema if cell.sharded else []  # CheckpointRecovery must precede it
    fit = pl.Trainer(callbacks=arranged, **{**settings, **(trainer or {})})
    resume_checkpoint = recover.latest_checkpoint(start_over)
    fit.fit(model, train_loader, val_loader, ckpt_path=resume_checkpoint if resume else None)
    return {
        "weights": tree_map(_local_shard, model.state_dict()),
        "optimizer": _tuples_to_lists(tree_map(_local_shard, fit.optimizers[0].state_dict())),
        "schedulers": [config.scheduler.state_dict() for config in fit.lr_scheduler_configs],
        "journal": journal.entries,
        "callbacks": {
            type(callback).__name__: _strip_folder(callback.state_dict(), str(folder))
            for callback in callbacks
            if not isinstance(callback, StepTimer)
        },
        "metrics": _to_floats(fit.callback_metrics),
        "random": [random.random(), float(np.random.rand()), float(torch.rand(()))],  # noqa: NPY002
        "scaler": getattr(fit.precision_plugin, "state_dict", dict)(),
        "step": fit.global_step,
        "rows": rows.read(),
        "recovery": recover.last_logged,
    }


def _strategy(cell: Cell) -> Any:
    if cell.sharded:
        return ModelParallelStrategy(
            cell.data_ranks, cell.tensor_parallel, save_distributed_checkpoint=cell.saves_shards
        )
    return "ddp" if cell.ranks > 1 else "auto"


def _precision(cell: Cell) -> dict[str, Any]:
    """Returns the plugin for 16 bits on a CPU, since Lightning's ``precision`` requires a GPU."""
    if cell.precision != "16-mixed":
        return {"precision": cell.precision}
    return {"plugins": MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", growth_interval=4))}


def _loaders(cell: Cell) -> tuple[Any, Any]:
    options = {"batch_size": BATCH_SIZE, "num_workers": cell.workers, "persistent_workers": cell.workers > 0}
    training: Any = resumable(DataLoader(NoisyDataset(cell.samples), shuffle=True, **options))
    if cell.has_second_loader:
        short = resumable(DataLoader(NoisyDataset(cell.samples // 2), shuffle=True, **options), seed=8)
        training = CombinedLoader({"long": training, "short": short}, "max_size")
    validation = DataLoader(NoisyDataset(12, noise=0.1 if cell.resumable_validation else 0.0), **options)
    return training, resumable(validation) if cell.resumable_validation else validation
