"""Reports the progress of a trial's run to the search, which may pause or prune it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning import Callback

from stormproof import TrainingHealth
from stormproof.checkpoint_recovery import CheckpointRecovery
from stormproof.distributed.collectives import run_on_rank_zero
from stormproof.distributed.rank import is_rank_zero
from stormproof.finding import Severity
from stormproof.lightning.find_callback import find_callback
from stormproof_train.errors import StoppedBySearchExit, UserError
from stormproof_train.search.worker_socket import BeginMessage, Message, WorkerClient
from stormproof_train.task import Task

PASSES, WARM_UP_PASSES = 30, 5
"""Timed passes over one sample, whose median is the latency, and warm-up passes."""


class TrialReporter(Callback):
    """Asks the search at the start and after each validation whether the run continues.

    Rank 0 communicates, and all ranks act on the reply at the same step. Before a pause, a checkpoint is committed
    between two batches, from which the run later resumes exactly. A pruned run ends immediately.

    Args:
        address: Socket of the worker that started the run.
        metrics: Logged names to report.
        latency: Whether to measure and report the seconds per sample.
    """

    def __init__(self, address: str, metrics: Sequence[str], latency: bool = False) -> None:
        self.address, self.metrics, self.latency = address, list(metrics), latency
        self._client: WorkerClient | None = None
        self._recovery: CheckpointRecovery | None = None
        self._pause_reason: str | None = None
        self._unregister: Callable[[], None] | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Reports the length and the size of the run."""
        assert isinstance(pl_module, Task)
        self._pause_reason = None
        self._recovery = find_callback(trainer, CheckpointRecovery)
        if self._recovery is not None:
            self._unregister = self._recovery.call_at_steps(self._pause_at_step)
        length = trainer.estimated_stepping_batches
        sizes: dict[str, float] = {"parameters": sum(parameter.numel() for parameter in pl_module.network.parameters())}
        if self.latency:  # on all ranks: they may share the layers
            sizes["latency"] = measure_latency(pl_module)
        is_on_gpu = trainer.strategy.root_device.type == "cuda"
        message: BeginMessage = {
            "kind": "begin",
            "step": trainer.global_step,
            "length": length,
            "sizes": sizes,
            "samples": _count_samples(trainer),
            "gpus": is_on_gpu * trainer.world_size,
        }
        self._report(message)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Reports the validation metrics and the critical findings."""
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        metrics = {name: trainer.callback_metrics.get(name) for name in self.metrics}
        missing_names = [name for name, value in metrics.items() if value is None]
        if missing_names:
            raise UserError(
                f"search.objectives: validation does not log {missing_names[0]}; it logs "
                f"{', '.join(sorted(name for name in trainer.callback_metrics if name.startswith('val/')))}"
            )
        values = {name: float(value) for name, value in metrics.items() if value is not None}
        critical = _critical_findings(trainer)
        self._report({"kind": "validated", "step": trainer.global_step, "values": values, "critical": critical})

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Closes the connection after training."""
        if stage == "fit":
            self._disconnect()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Closes the connection."""
        self._disconnect()

    def _report(self, message: Message) -> None:
        answer = run_on_rank_zero(lambda: self._connect().ask(message))
        if answer["verdict"] == "prune":
            raise StoppedBySearchExit(answer["reason"], is_rank_zero=is_rank_zero())
        if answer["verdict"] == "pause":
            self._pause_reason = answer["reason"]

    def _pause_at_step(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if self._pause_reason is not None:
            assert self._recovery is not None
            self._recovery.commit(trainer, module)
            raise StoppedBySearchExit(self._pause_reason, is_rank_zero=is_rank_zero())

    def _connect(self) -> WorkerClient:
        if self._client is None:
            try:
                self._client = WorkerClient(self.address)
            except OSError as error:
                raise UserError(
                    "this is a trial of a search that is not running: start the search again, or remove "
                    "callbacks.search"
                ) from error
        return self._client

    def _disconnect(self) -> None:
        if self._unregister is not None:
            self._unregister()
            self._unregister = None
        if self._client is not None:
            self._client.close()
            self._client = None


def measure_latency(task: Task) -> float:
    """Returns the median seconds of a forward pass over one sample of zeros, in evaluation mode on the device."""
    dtype = next(
        (parameter.dtype for parameter in task.network.parameters() if parameter.is_floating_point()), torch.float32
    )
    sample = torch.zeros(1, *task.spec.input_shape, device=task.device, dtype=dtype)
    was_training = task.network.training
    task.network.eval()
    try:
        with torch.inference_mode():
            return statistics.median(
                [_time_pass(task.network, sample) for _ in range(WARM_UP_PASSES + PASSES)][WARM_UP_PASSES:]
            )
    finally:
        task.network.train(was_training)


def _time_pass(network: torch.nn.Module, sample: torch.Tensor) -> float:
    start = time.perf_counter()
    network(sample)
    if sample.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _count_samples(trainer: pl.Trainer) -> dict[str, int] | None:
    """Returns the sizes of the training and validation split. None if a dataset has no length."""
    try:
        training: Any = trainer.train_dataloader
        validation: Any = trainer.val_dataloaders
        return {"training": len(training.dataset), "validation": len(validation.dataset)}
    except (AttributeError, TypeError):
        return None


def _critical_findings(trainer: pl.Trainer) -> list[str]:
    callbacks: list[Callback] = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue] (set in __init__)
    findings = [
        finding for callback in callbacks if isinstance(callback, TrainingHealth) for finding in callback.findings
    ]
    return [finding.title for finding in findings if finding.severity is Severity.CRITICAL]
