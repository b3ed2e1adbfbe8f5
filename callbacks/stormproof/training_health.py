"""What is wrong with a training, and what to do about it."""

from __future__ import annotations

import functools
import socket
import traceback
import warnings
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning import Callback
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from stormproof.dead_neuron_detector import DeadNeuronDetector
from stormproof.distributed.collectives import all_gather
from stormproof.distributed.rank import is_rank_zero
from stormproof.finding import Finding, Problem, Severity
from stormproof.gradient_norm_monitor import GradientNormMonitor
from stormproof.health.observers.observer import TrainingObserver
from stormproof.health.observers.rank_compute_time import gather_compute_times
from stormproof.health.observers.replica_check import compare_replicas
from stormproof.health.publishing import append_finding, log_finding, log_table, send_alert
from stormproof.health.root_causes import apply_rules, find_root_causes
from stormproof.health.rules.autograd_graph import gradients_reach_all_layers
from stormproof.health.rules.progress import is_clearly_better
from stormproof.lightning import internals
from stormproof.lightning.inactive_copies import InactiveCopies

TRANSIENT_PROBLEMS = (Problem.NO_BETTER_THAN_CONSTANT, Problem.LEARNING_RATE_TOO_LOW)
"""What a training that gets somewhere after all disproves."""
MAX_ERROR_LENGTH = 200
"""Letters of an error of its own that are shown."""


def _isolate_errors(hook: Callable[..., None]) -> Callable[..., None]:
    """A hook that ends the diagnosis, and not the training, where it fails."""

    @functools.wraps(hook)
    def isolated_hook(self: TrainingHealth, *args: Any, **kwargs: Any) -> None:
        try:
            hook(self, *args, **kwargs)
        except Exception as error:
            # Lightning calls the on_exception hooks of other callbacks only if this one does not raise
            if _is_raised_by_signal_handler(error) and hook.__name__ != "on_exception":
                raise
            self._disable(error)

    return isolated_hook


def _is_raised_by_signal_handler(error: Exception) -> bool:
    """Returns whether torch raised the error because a loader worker died. It does so in whatever code is running."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return frame.f_globals.get("__name__") == "torch.utils.data._utils.signal_handling"


class TrainingHealth(InactiveCopies, Callback):
    r"""Tells what is wrong with a training: what, where, since when, the numbers that prove it, and what to try.

    It looks closely at some batches (the first ones, then fewer and fewer), at the gradients and units that
    :class:`stormproof.GradientNormMonitor` and :class:`stormproof.DeadNeuronDetector` measure, which it brings along
    where they are missing, and at each step's loss and waiting time. What it knows:
    :class:`stormproof.finding.Problem`.
    It compares a training with its own beginning, and with the best constant prediction; a rule that lacks what it
    needs says nothing. It changes no bit of the training.

    The loss is followed through torch's functions. A ``training_step`` that returns ``{"loss", "preds", "target"}``
    tells most where that does not reach: in a compiled network, and for losses of your own. What is found is printed,
    is a line of ``findings.jsonl``, and where the logger is W&B's an alert, and at the end a row of a table.
    Where the diagnosis itself fails, it says so and ends; the training goes on.

    Args:
        loss: of (preds, target), as returned by ``training_step``; where it has ``best_constant(target)``, that is the
            loss of the best constant prediction. None: the loss that reproduces the value that was returned, among
            those called, the module's own, and torch's; else the only standard one that was called, if it is at least
            half of it. Where none is known, it is said once what is left out.
        validation_metric: logged in validation, lower is better: tells overfitting where the validation's loss is not
            known.
        run_folder: where ``findings.jsonl`` is written, a line for each new or changed finding; None: nowhere.
        advise: gives other advice for a finding, or None to leave it; for a project with settings of its own.
        every_n_steps: batches between two close looks, once the training is some way along; at least 1.

    Raises:
        ValueError: if ``every_n_steps`` is below 1.

    Example:
        >>> health = TrainingHealth()
        >>> trainer = pl.Trainer(callbacks=[health])  # doctest: +SKIP
        >>> trainer.fit(module, loader)  # doctest: +SKIP
        >>> print(*health.findings, sep="\n")  # doctest: +SKIP
        critical: learning rate zero in optimizer 0 since step 0 (lr 0, steps 20): set lr above 0 …
    """

    def __init__(
        self,
        loss: Callable[..., Any] | None = None,
        *,
        validation_metric: str | None = None,
        run_folder: str | Path | None = None,
        advise: Callable[[Finding], str | None] | None = None,
        every_n_steps: int = 100,
    ) -> None:
        if not isinstance(every_n_steps, int) or every_n_steps < 1:
            raise ValueError(f"every_n_steps is {every_n_steps}; it must be a whole number, at least 1")
        self.loss, self.validation_metric, self.every_n_steps = loss, validation_metric, every_n_steps
        self.advise = advise
        self.run_folder = None if run_folder is None else Path(run_folder)
        self._findings_by_key: dict[tuple[Problem, bool], Finding] = {}  # by problem, and whether it may be meant so
        self._findings: list[Finding] = []
        self._observer: TrainingObserver | None = None
        self._observer_state: dict[str, Any] | None = None
        self._waits_for_parameters = False
        self._hosts: tuple[str, ...] = ()
        self._previous_step = 0  # the step that was reached when we last looked
        self._compares_replicas = True  # False once the weights turn out not to be comparable

    @property
    def findings(self) -> list[Finding]:
        """What is wrong: causes before symptoms, warnings before what may be meant so."""
        return list(self._findings)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Forgets an earlier training, and brings along the monitors that are missing."""
        if stage != "fit":
            return
        if trainer.global_step == 0:
            self._findings_by_key, self._findings, self._observer_state = {}, [], None
        callbacks = internals.callbacks(trainer)
        for callback_class in (GradientNormMonitor, DeadNeuronDetector):
            if not any(isinstance(callback, callback_class) for callback in callbacks):
                callbacks.append(callback_class(table=False))

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begins to look."""
        self._hosts = tuple(all_gather(socket.gethostname()))
        self._previous_step = trainer.global_step
        self._compares_replicas = True
        self._start_observing(trainer, pl_module)

    @_isolate_errors
    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """The batch is here."""
        if self._waits_for_parameters:
            self._start_observing(trainer, pl_module)
        if self._observer is not None:
            self._observer.on_train_batch_start(batch, batch_idx)

    @_isolate_errors
    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: torch.Tensor) -> None:
        """Takes the loss."""
        if self._observer is not None:
            self._observer.on_before_backward(loss)

    @_isolate_errors
    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Looks at whose gradients there are."""
        if self._observer is not None:
            self._observer.on_before_optimizer_step(optimizer)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Diagnoses, after a batch that was looked at closely; the ranks compare their times every so many steps."""
        previous_step, self._previous_step = self._previous_step, trainer.global_step
        if trainer.world_size > 1 and trainer.global_step // self.every_n_steps > previous_step // self.every_n_steps:
            self._gather_compute_times(trainer)
        self._finish_batch(trainer)

    @_isolate_errors
    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begins a pass."""
        if self._observer is not None and not trainer.sanity_checking:
            self._observer.on_validation_start()

    @_isolate_errors
    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Watches what the validation step takes its loss of."""
        if self._observer is not None and not trainer.sanity_checking:
            self._observer.on_validation_batch_start(batch)

    @_isolate_errors
    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Takes the batch's loss."""
        if self._observer is not None and not trainer.sanity_checking:
            self._observer.on_validation_batch_end(outputs)

    @_isolate_errors
    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Concludes a pass, and diagnoses."""
        if self._observer is not None and not trainer.sanity_checking:
            self._observer.on_validation_end()
            self._diagnose(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compares the ranks' weights, which all do, whatever became of the rest; and diagnoses."""
        difference = compare_replicas(trainer, pl_module) if self._compares_replicas else None
        self._compares_replicas = difference is not None
        self._gather_compute_times(trainer)
        self._finish_epoch(trainer, difference or 0.0)

    @_isolate_errors
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Diagnoses, and looks no longer."""
        if self._observer is not None:
            self._observer.update_record()
            self._diagnose(trainer)
            self._stop_observing()
            if is_rank_zero():
                log_table(trainer.loggers, self._findings)

    @_isolate_errors
    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Diagnoses what led there, and looks no longer. A GPU is not asked: it may be what failed."""
        if self._observer is not None:
            if trainer.strategy.root_device.type == "cpu":
                self._observer.update_record()
                self._diagnose(trainer)
            self._stop_observing()

    def state_dict(self) -> dict[str, Any]:
        """What was found, and the numbers that it is compared with, as plain values."""
        observer_state = self._observer_state if self._observer is None else self._observer.state_dict()
        return {"found": [finding.as_dict() for finding in self._findings_by_key.values()], "examined": observer_state}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from ``state_dict``."""
        findings = [Finding.from_dict(finding) for finding in state_dict["found"]]
        self._findings_by_key = {(finding.problem, finding.severity == Severity.INFO): finding for finding in findings}
        self._findings = find_root_causes(findings)
        self._observer_state = state_dict["examined"]

    def _inactive_state(self) -> dict[str, Any]:
        observer_state = self._observer_state if self._observer is None else self._observer.state_dict()
        return {"_observer_state": observer_state, "_observer": None, "_waits_for_parameters": False}

    @_isolate_errors
    def _finish_batch(self, trainer: pl.Trainer) -> None:
        if self._observer is not None and self._observer.on_train_batch_end():
            self._diagnose(trainer)

    def _gather_compute_times(self, trainer: pl.Trainer) -> None:
        """The ranks tell each other how long they work for themselves, which all do, whatever became of the rest."""
        local_times: tuple[list[float], list[tuple[float, float]]] = ([], [])
        try:
            local_times = self._observer.compute_times() if self._observer is not None else local_times
        except Exception as error:  # noqa: BLE001 (the other ranks wait to be told)
            self._disable(error)
        gathered_times = gather_compute_times(*local_times, self._hosts, trainer.strategy.root_device)
        if gathered_times is not None and self._observer is not None:
            self._observer.record.rank_times = gathered_times

    @_isolate_errors
    def _finish_epoch(self, trainer: pl.Trainer, difference: float) -> None:
        if self._observer is not None:
            self._observer.on_train_epoch_end(difference)
            self._diagnose(trainer)

    @_isolate_errors
    def _start_observing(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Begins to look, once lazy layers have their parameters: the first batch may give them these."""
        self._waits_for_parameters = any(is_lazy(parameter) for parameter in module.parameters())
        if self._waits_for_parameters:
            return
        callbacks = internals.callbacks(trainer)
        gradient_monitor = next(callback for callback in callbacks if isinstance(callback, GradientNormMonitor))
        unit_detector = next(callback for callback in callbacks if isinstance(callback, DeadNeuronDetector))
        self._observer = TrainingObserver(
            trainer, module, gradient_monitor, unit_detector, self.loss, self.validation_metric, self.every_n_steps
        )
        if self._observer_state is not None:
            self._observer.load_state_dict(self._observer_state)

    def _disable(self, error: Exception) -> None:
        """Says that it looks no longer, and why."""
        observer, self._observer, self._waits_for_parameters = self._observer, None, False
        with suppress(Exception):  # its hooks may be what failed
            if observer is not None:
                observer.stop()
        frame = traceback.extract_tb(error.__traceback__)[-1]
        warnings.warn(
            f"TrainingHealth failed with {type(error).__name__}: {str(error)[:MAX_ERROR_LENGTH]} (in {frame.name}, "
            f"{Path(frame.filename).name} line {frame.lineno}); the training goes on, and is diagnosed no longer",
            stacklevel=2,
        )

    def _stop_observing(self) -> None:
        assert self._observer is not None
        self._observer_state = self._observer.state_dict()
        self._observer.stop()
        self._observer = None

    def _diagnose(self, trainer: pl.Trainer) -> None:
        """Adds what is found now to what was; a finding stays as it was told first, unless it has become worse."""
        assert self._observer is not None
        for finding in apply_rules(self._observer.record):
            recorded_finding = self._findings_by_key.get((finding.problem, finding.severity == Severity.INFO))
            if recorded_finding is None or (recorded_finding.severity != finding.severity == Severity.CRITICAL):
                self._findings_by_key[finding.problem, finding.severity == Severity.INFO] = self._override_advice(
                    finding
                )
        if is_clearly_better(self._observer.record):
            self._downgrade(TRANSIENT_PROBLEMS)
        if self._observer.record.lagging_units == {}:
            self._downgrade((Problem.BATCH_NORM_STATISTICS_LAG,))
        if gradients_reach_all_layers(self._observer.record):
            self._downgrade((Problem.NO_GRADIENT,))
        previous_findings = {(finding.problem, finding.severity): finding for finding in self._findings}
        self._findings = find_root_causes(self._findings_by_key.values())
        for finding in self._findings:
            key = finding.problem, finding.severity
            if finding != previous_findings.get(key):
                self._publish(trainer, finding, is_new=key not in previous_findings)

    def _downgrade(self, problems: Iterable[Problem]) -> None:
        """Downgrades findings that no longer apply to severity INFO."""
        assert self._observer is not None
        for problem in problems:
            finding = self._findings_by_key.pop((problem, False), None)
            if finding is not None:
                evidence = {**finding.evidence, "until_step": float(self._observer.record.step)}
                self._findings_by_key[problem, True] = replace(
                    finding, severity=Severity.INFO, evidence=evidence, advice="nothing: it is so no longer"
                )

    def _override_advice(self, finding: Finding) -> Finding:
        advice = None if self.advise is None else self.advise(finding)
        return finding if advice is None else replace(finding, advice=advice)

    def _publish(self, trainer: pl.Trainer, finding: Finding, *, is_new: bool) -> None:
        """Tells what is new, and writes down what is new or explains more than before."""
        if not is_rank_zero():
            return
        if is_new:
            log_finding(finding)
            send_alert(trainer.loggers, finding)
        if self.run_folder is not None:
            append_finding(self.run_folder / "findings.jsonl", finding)
