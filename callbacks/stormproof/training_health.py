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
from stormproof.distributed.collectives import everyone
from stormproof.distributed.rank import is_rank_zero
from stormproof.finding import Finding, Problem, Severity
from stormproof.gradient_norm_monitor import GradientNormMonitor
from stormproof.health.observers.observer import Examiner
from stormproof.health.observers.rank_compute_time import tell_each_other
from stormproof.health.observers.replica_check import difference_of_replicas
from stormproof.health.publishing import alert, append_to, log_table, print_finding
from stormproof.health.root_causes import find, root_causes
from stormproof.health.rules.autograd_graph import gradients_reach_all_layers
from stormproof.health.rules.progress import is_clearly_better
from stormproof.lightning import internals
from stormproof.lightning.inactive_copies import InactiveCopies

PASSING = (Problem.NO_BETTER_THAN_CONSTANT, Problem.LEARNING_RATE_TOO_LOW)
"""What a training that gets somewhere after all disproves."""
SHOWN = 200
"""Letters of an error of its own that are shown."""


def _beside_the_training(hook: Callable[..., None]) -> Callable[..., None]:
    """A hook that ends the diagnosis, and not the training, where it fails."""

    @functools.wraps(hook)
    def hooked(self: TrainingHealth, *args: Any, **kwargs: Any) -> None:
        try:
            hook(self, *args, **kwargs)
        except Exception as error:  # noqa: BLE001 (of all kinds; the training is worth more than what is said of it)
            self._give_up(error)

    return hooked


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
        self._found: dict[tuple[Problem, bool], Finding] = {}  # by problem, and whether it may be meant so
        self._findings: list[Finding] = []
        self._examiner: Examiner | None = None
        self._saved: dict[str, Any] | None = None
        self._waits_for_parameters = False
        self._hosts: tuple[str, ...] = ()
        self._compared = 0  # the step that was reached when we last looked
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
            self._found, self._findings, self._saved = {}, [], None
        callbacks = internals.callbacks(trainer)
        for kind in (GradientNormMonitor, DeadNeuronDetector):
            if not any(isinstance(each, kind) for each in callbacks):
                callbacks.append(kind(table=False))

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begins to look."""
        self._hosts = tuple(everyone(socket.gethostname()))
        self._compared = trainer.global_step
        self._compares_replicas = True
        self._begin(trainer, pl_module)

    @_beside_the_training
    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """The batch is here."""
        if self._waits_for_parameters:
            self._begin(trainer, pl_module)
        if self._examiner is not None:
            self._examiner.batch_begins(batch, batch_idx)

    @_beside_the_training
    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: torch.Tensor) -> None:
        """Takes the loss."""
        if self._examiner is not None:
            self._examiner.goes_backward(loss)

    @_beside_the_training
    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Looks at whose gradients there are."""
        if self._examiner is not None:
            self._examiner.before_update(optimizer)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Diagnoses, after a batch that was looked at closely; the ranks compare their times every so many steps."""
        before, self._compared = self._compared, trainer.global_step
        if trainer.world_size > 1 and trainer.global_step // self.every_n_steps > before // self.every_n_steps:
            self._compare_times(trainer)
        self._end_batch(trainer)

    @_beside_the_training
    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begins a pass."""
        if self._examiner is not None and not trainer.sanity_checking:
            self._examiner.validation_begins()

    @_beside_the_training
    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Watches what the validation step takes its loss of."""
        if self._examiner is not None and not trainer.sanity_checking:
            self._examiner.validation_batch_begins(batch)

    @_beside_the_training
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
        if self._examiner is not None and not trainer.sanity_checking:
            self._examiner.validation_batch_ends(outputs)

    @_beside_the_training
    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Concludes a pass, and diagnoses."""
        if self._examiner is not None and not trainer.sanity_checking:
            self._examiner.validation_ends()
            self._diagnose(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compares the ranks' weights, which all do, whatever became of the rest; and diagnoses."""
        difference = difference_of_replicas(trainer, pl_module) if self._compares_replicas else None
        self._compares_replicas = difference is not None
        self._compare_times(trainer)
        self._end_epoch(trainer, difference or 0.0)

    @_beside_the_training
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Diagnoses, and looks no longer."""
        if self._examiner is not None:
            self._examiner.look_up()
            self._diagnose(trainer)
            self._end()
            if is_rank_zero():
                log_table(trainer.loggers, self._findings)

    @_beside_the_training
    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Diagnoses what led there, and looks no longer. A GPU is not asked: it may be what failed."""
        if self._examiner is not None:
            if trainer.strategy.root_device.type == "cpu":
                self._examiner.look_up()
                self._diagnose(trainer)
            self._end()

    def state_dict(self) -> dict[str, Any]:
        """What was found, and the numbers that it is compared with, as plain values."""
        examined = self._saved if self._examiner is None else self._examiner.state_dict()
        return {"found": [finding.as_dict() for finding in self._found.values()], "examined": examined}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from ``state_dict``."""
        found = [Finding.from_dict(each) for each in state_dict["found"]]
        self._found = {(each.problem, each.severity == Severity.INFO): each for each in found}
        self._findings = root_causes(found)
        self._saved = state_dict["examined"]

    def _inactive(self) -> dict[str, Any]:
        saved = self._saved if self._examiner is None else self._examiner.state_dict()
        return {"_saved": saved, "_examiner": None, "_waits_for_parameters": False}

    @_beside_the_training
    def _end_batch(self, trainer: pl.Trainer) -> None:
        if self._examiner is not None and self._examiner.batch_ends():
            self._diagnose(trainer)

    def _compare_times(self, trainer: pl.Trainer) -> None:
        """The ranks tell each other how long they work for themselves, which all do, whatever became of the rest."""
        own: tuple[list[float], list[tuple[float, float]]] = ([], [])
        try:
            own = self._examiner.own_times() if self._examiner is not None else own
        except Exception as error:  # noqa: BLE001 (the other ranks wait to be told)
            self._give_up(error)
        told = tell_each_other(*own, self._hosts, trainer.strategy.root_device)
        if told is not None and self._examiner is not None:
            self._examiner.record.own_times = told

    @_beside_the_training
    def _end_epoch(self, trainer: pl.Trainer, difference: float) -> None:
        if self._examiner is not None:
            self._examiner.epoch_ends(difference)
            self._diagnose(trainer)

    @_beside_the_training
    def _begin(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Begins to look, once lazy layers have their parameters: the first batch may give them these."""
        self._waits_for_parameters = any(is_lazy(parameter) for parameter in module.parameters())
        if self._waits_for_parameters:
            return
        callbacks = internals.callbacks(trainer)
        norms = next(each for each in callbacks if isinstance(each, GradientNormMonitor))
        dead = next(each for each in callbacks if isinstance(each, DeadNeuronDetector))
        self._examiner = Examiner(trainer, module, norms, dead, self.loss, self.validation_metric, self.every_n_steps)
        if self._saved is not None:
            self._examiner.load_state_dict(self._saved)

    def _give_up(self, error: Exception) -> None:
        """Says that it looks no longer, and why."""
        examiner, self._examiner, self._waits_for_parameters = self._examiner, None, False
        with suppress(Exception):  # its hooks may be what failed
            if examiner is not None:
                examiner.stop()
        where = traceback.extract_tb(error.__traceback__)[-1]
        warnings.warn(
            f"TrainingHealth failed with {type(error).__name__}: {str(error)[:SHOWN]} (in {where.name}, "
            f"{Path(where.filename).name} line {where.lineno}); the training goes on, and is diagnosed no longer",
            stacklevel=2,
        )

    def _end(self) -> None:
        assert self._examiner is not None
        self._saved = self._examiner.state_dict()
        self._examiner.stop()
        self._examiner = None

    def _diagnose(self, trainer: pl.Trainer) -> None:
        """Adds what is found now to what was; a finding stays as it was told first, unless it has become worse."""
        assert self._examiner is not None
        for finding in find(self._examiner.record):
            known = self._found.get((finding.problem, finding.severity == Severity.INFO))
            if known is None or (known.severity != finding.severity == Severity.CRITICAL):
                self._found[finding.problem, finding.severity == Severity.INFO] = self._advised(finding)
        if is_clearly_better(self._examiner.record):
            self._take_back(PASSING)
        if self._examiner.record.lagging == {}:
            self._take_back((Problem.BATCH_NORM_STATISTICS_LAG,))
        if gradients_reach_all_layers(self._examiner.record):
            self._take_back((Problem.NO_GRADIENT,))
        before = {(finding.problem, finding.severity): finding for finding in self._findings}
        self._findings = root_causes(self._found.values())
        for finding in self._findings:
            key = finding.problem, finding.severity
            if finding != before.get(key):
                self._publish(trainer, finding, is_new=key not in before)

    def _take_back(self, problems: Iterable[Problem]) -> None:
        """Downgrades findings that no longer apply to severity INFO."""
        assert self._examiner is not None
        for problem in problems:
            known = self._found.pop((problem, False), None)
            if known is not None:
                evidence = {**known.evidence, "until_step": float(self._examiner.record.step)}
                self._found[problem, True] = replace(
                    known, severity=Severity.INFO, evidence=evidence, advice="nothing: it is so no longer"
                )

    def _advised(self, finding: Finding) -> Finding:
        other = None if self.advise is None else self.advise(finding)
        return finding if other is None else replace(finding, advice=other)

    def _publish(self, trainer: pl.Trainer, finding: Finding, *, is_new: bool) -> None:
        """Tells what is new, and writes down what is new or explains more than before."""
        if not is_rank_zero():
            return
        if is_new:
            print_finding(finding)
            alert(trainer.loggers, finding)
        if self.run_folder is not None:
            append_to(self.run_folder / "findings.jsonl", finding)
