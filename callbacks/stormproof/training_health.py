"""Diagnoses a run and reports findings."""

from __future__ import annotations

import math
import socket
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning import Callback
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from stormproof.arguments import check_arguments
from stormproof.dead_neuron_detector import DeadNeuronDetector
from stormproof.distributed.collectives import all_gather
from stormproof.distributed.rank import is_rank_zero
from stormproof.finding import Finding, Severity
from stormproof.gradient_norm_monitor import GradientNormMonitor
from stormproof.health.observers.observer import TrainingObserver
from stormproof.health.observers.rank_compute_time import make_row, read_rows
from stormproof.health.observers.replica_check import compare_replicas
from stormproof.health.publishing import append_finding, log_finding, log_table, send_alert
from stormproof.health.record import TRACED_TOPICS
from stormproof.health.rule import NotEnoughEvidence, Rule
from stormproof.health.rule_set import RuleSet
from stormproof.health.rules import default_rules
from stormproof.health.summary import HealthSummary
from stormproof.internal_errors import describe_error, is_raised_by_signal_handler, isolate_errors
from stormproof.lightning import internals
from stormproof.lightning.inactive_copies import InactiveCopies
from stormproof.lightning.layout import Layout
from stormproof.lightning.step_exchange import ExchangedNumbers, StepExchange, call_at_exchange_steps
from stormproof.probe.budget import Cadence
from stormproof.probe.probe import Probe, close_probe

TRACE_INTERVAL = 100
"""Default interval in steps: of traced steps until the budget chooses one, and of comparisons of the ranks."""


class TrainingHealth(InactiveCopies, Callback):
    r"""Reports problems of a run: the place, the first step, the evidence, the likely cause and advice.

    :class:`stormproof.Problem` lists the built-in problems. Rules compare the run with its own start and with the best
    constant prediction. A rule abstains if it lacks data. The results of the run stay bit-identical.

    The callback measures the loss and the waiting time of each step. It traces at least 21 of the first 100 steps, and
    further steps as often as ``budget`` allows. If a problem is likely, but not certain yet, it measures up to five of
    the next steps in addition, and leaves out as many regular ones later. It reads gradients and units from
    :class:`stormproof.GradientNormMonitor` and :class:`stormproof.DeadNeuronDetector`, and adds these callbacks if they
    are missing and a rule needs them.

    The loss is traced through torch functions. This is not possible in compiled networks and for custom losses. Return
    ``{"loss", "preds", "target"}`` from ``training_step`` in these cases.

    Findings are logged and appended to ``findings.jsonl``. With a W&B logger each finding is also an alert, and all
    findings are a table at the end. An internal error disables the callback with a warning, and the run continues.

    Args:
        loss: Function of ``preds`` and ``target`` as returned by ``training_step``. Its method
            ``best_constant(target)``, if any, returns the best constant prediction. If None, the callback finds a loss
            function that reproduces the loss of the step. It tries the loss functions that the step calls, those of the
            module, and those of torch. If none matches, but the step calls a single standard loss that makes up at
            least half of the loss, it uses this one. Otherwise, a message lists the comparisons that are left out.
        validation_metric: Name of a logged validation metric, for which lower is better. Used to detect overfitting if
            the validation loss is unknown.
        run_folder: Folder of ``findings.jsonl``, which gets a line for each new or changed finding. Disabled if None.
        advise: Function that returns replacement advice for a finding, or None to keep its own. Use it to suggest
            settings of your project.
        rules: Rules to apply, one per problem. By default :func:`stormproof.default_rules`. Add custom rules with
            ``rules=[*default_rules(), my_rule]``.
        disable: Problems to ignore, in upper or lower case, such as ``{"PLATEAU"}``.
        severity: Severities by problem, which replace the severities of the rules, such as
            ``{"OVERFITTING": "info"}``. A finding of severity ``info`` explains no other finding. A ``critical`` one
            stops the run with ``DivergenceGuard(stop_on_critical=True)``.
        every_n_steps: Interval of traced steps, in addition to the early ones, and of comparisons of the ranks. Must be
            at least 1. If None, ``budget`` determines the interval of traced steps, and the ranks are compared every
            100 steps.
        budget: Fraction of the training time that measurements may take, as in
            :class:`stormproof.GradientNormMonitor`.

    Raises:
        ValueError: If an argument is out of range, a problem or severity is unknown, two rules have the same problem,
            or problems explain each other.

    Example:
        >>> health = TrainingHealth()
        >>> trainer = pl.Trainer(callbacks=[health])  # doctest: +SKIP
        >>> trainer.fit(module, loader)  # doctest: +SKIP
        >>> print(*health.findings, sep="\n")  # doctest: +SKIP
        critical: LEARNING_RATE_ZERO  optimizer 0: the learning rate has been 0 for 20 steps, since step 0. …
    """

    @check_arguments(every_n_steps="at least 1", budget="above 0 and at most 1")
    def __init__(
        self,
        loss: Callable[..., Any] | None = None,
        *,
        validation_metric: str | None = None,
        run_folder: str | Path | None = None,
        advise: Callable[[Finding], str | None] | None = None,
        rules: Iterable[Rule] | None = None,
        disable: Collection[str] = (),
        severity: Mapping[str, str] | None = None,
        every_n_steps: int | None = None,
        budget: float | None = None,
    ) -> None:
        self.loss, self.validation_metric, self.advise = loss, validation_metric, advise
        self.every_n_steps, self.budget = every_n_steps, budget
        self.run_folder = None if run_folder is None else Path(run_folder)
        self._rules = RuleSet(default_rules() if rules is None else rules, disable=disable, severity=severity)
        self._findings_by_key: dict[tuple[str, bool], Finding] = {}  # by problem, and whether the severity is INFO
        self._findings: list[Finding] = []
        self._missing_evidence: dict[str, NotEnoughEvidence] = {}
        self._observer: TrainingObserver | None = None
        self._observer_state: dict[str, Any] | None = None
        self._waits_for_parameters = False
        self._hosts: tuple[str, ...] = ()
        self._previous_step = 0  # at the end of the previous batch
        self._exchanged_times: ExchangedNumbers | None = None  # with several ranks, during training
        self._must_exchange_times = False
        self._undo_functions: list[Callable[[], None]] = []
        self._diagnosed_steps = 0  # optimizer steps until now, or until an internal error
        self._has_failed = False
        self._compares_replicas = True  # False once the weights turn out not to be comparable

    @property
    def findings(self) -> list[Finding]:
        """Current findings: causes before symptoms, severity INFO last."""
        return list(self._findings)

    def summary(self) -> HealthSummary:
        """Returns a summary that prints as text and renders as a table with links in a notebook."""
        found_problems = {problem for problem, _ in self._findings_by_key}
        return HealthSummary(
            self.findings,
            self._diagnosed_steps,
            has_failed=self._has_failed,
            failed_problems=tuple(self._rules.failed_problems),
            missing_evidence={
                problem: entry.missing
                for problem, entry in self._missing_evidence.items()
                if problem not in found_problems
            },
        )

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuses tensor parallelism. Drops the findings of an earlier run and adds missing monitors."""
        if stage != "fit":
            return
        Layout.of(trainer).refuse_tensor_parallelism(self)
        if trainer.global_step == 0:
            self._findings_by_key, self._findings, self._observer_state = {}, [], None
            self._missing_evidence, self._diagnosed_steps = {}, 0
        self._has_failed = False
        self._rules.failed_problems.clear()
        callbacks = internals.callbacks(trainer)
        for topic, callback_class in (("gradients", GradientNormMonitor), ("units", DeadNeuronDetector)):
            if topic in self._rules.needs and not any(isinstance(callback, callback_class) for callback in callbacks):
                callbacks.append(callback_class(table=False, budget=self.budget))

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Starts observing."""
        self._hosts = tuple(all_gather(socket.gethostname()))
        self._previous_step = trainer.global_step
        self._compares_replicas, self._must_exchange_times = "ranks" in self._rules.needs, False
        if trainer.world_size > 1 and "ranks" in self._rules.needs:
            self._exchanged_times = StepExchange.of(trainer).add(self._make_times_row)
            self._undo_functions = [
                self._exchanged_times.remove,
                call_at_exchange_steps(trainer, self._exchange_due_times),
            ]
        self._start_observing(trainer, pl_module)

    @isolate_errors
    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Starts timing and tracing the batch."""
        if self._waits_for_parameters:
            self._start_observing(trainer, pl_module)
        if self._observer is not None:
            self._observer.on_train_batch_start(batch, batch_idx)

    @isolate_errors
    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: torch.Tensor) -> None:
        """Records the loss."""
        if self._observer is not None:
            self._observer.on_before_backward(loss)

    @isolate_errors
    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Records the gradients of the optimizer."""
        if self._observer is not None:
            self._observer.on_before_optimizer_step(optimizer)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Diagnoses after a due step. At a fixed interval, the compute times of the ranks are compared."""
        previous_step, self._previous_step = self._previous_step, trainer.global_step
        interval = self.every_n_steps or TRACE_INTERVAL
        self._must_exchange_times |= self._previous_step // interval > previous_step // interval
        self._finish_batch(trainer)

    @isolate_errors
    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Starts a validation pass."""
        if self._observer is not None and not trainer.sanity_checking:
            self._observer.on_validation_start()

    @isolate_errors
    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Traces the loss of the validation step."""
        if self._observer is not None and not trainer.sanity_checking:
            self._observer.on_validation_batch_start(batch)

    @isolate_errors
    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Records the loss of the validation batch."""
        if self._observer is not None and not trainer.sanity_checking:
            self._observer.on_validation_batch_end(outputs)

    @isolate_errors
    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Ends a validation pass and diagnoses."""
        if self._observer is not None and not trainer.sanity_checking:
            self._observer.on_validation_end()
            self._diagnose(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compares the weights of the ranks, on all ranks even after an internal error, and diagnoses."""
        difference = compare_replicas(trainer, pl_module) if self._compares_replicas else None
        self._compares_replicas = difference is not None
        self._exchange_times()
        self._finish_epoch(trainer, difference or 0.0)

    @isolate_errors
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Diagnoses and stops observing."""
        self._stop_exchange()
        close_probe(trainer)
        if self._observer is not None:
            self._diagnose(trainer)
            self._stop_observing()
            if is_rank_zero():
                log_table(trainer.loggers, self._findings)

    @isolate_errors
    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Diagnoses on a CPU and stops observing. A GPU may have caused the exception, so it is not read."""
        self._stop_exchange()
        close_probe(trainer)
        if self._observer is not None:
            if trainer.strategy.root_device.type == "cpu":
                self._diagnose(trainer)
            self._stop_observing()

    def state_dict(self) -> dict[str, Any]:
        """Returns findings and measurements as plain values."""
        observer_state = self._observer_state if self._observer is None else self._observer.state_dict()
        return {
            "findings": [finding.as_dict() for finding in self._findings_by_key.values()],
            "observer": observer_state,
            "steps": self._diagnosed_steps,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores measurements, and findings of the current rules."""
        findings = [Finding.from_dict(finding) for finding in state_dict["findings"]]
        findings = [finding for finding in findings if finding.problem in self._rules.problems]
        self._findings_by_key = {(finding.problem, finding.severity == Severity.INFO): finding for finding in findings}
        self._findings = self._rules.find_root_causes(findings)
        self._observer_state = state_dict["observer"]
        self._diagnosed_steps = state_dict.get("steps", 0)  # absent in checkpoints of version 0.1.0

    def _inactive_state(self) -> dict[str, Any]:
        """Returns attributes of a copy of this callback that observes nothing."""
        observer_state = self._observer_state if self._observer is None else self._observer.state_dict()
        return {
            "_observer_state": observer_state,
            "_observer": None,
            "_waits_for_parameters": False,
            "_exchanged_times": None,
            "_undo_functions": [],
        }

    @isolate_errors
    def _finish_batch(self, trainer: pl.Trainer) -> None:
        """Ends a batch and diagnoses after a due step."""
        if self._observer is None:
            return
        has_news = self._observer.on_train_batch_end()
        self._diagnosed_steps = self._observer.steps
        if has_news:
            self._diagnose(trainer)

    def _exchange_due_times(self) -> None:
        """Exchanges the compute times at the next step at which the ranks exchange other numbers, too."""
        if self._must_exchange_times:
            self._exchange_times()

    def _exchange_times(self) -> None:
        """Exchanges the compute times of all ranks, on all ranks even after an internal error."""
        if self._exchanged_times is None:
            return
        self._must_exchange_times = True
        rows = self._exchanged_times.read()
        if all(math.isnan(value) for row in rows for value in row):  # gathered before the times were due
            rows = self._exchanged_times.read()
        self._must_exchange_times = False
        if self._observer is not None:
            self._observer.rank_times = read_rows(rows, self._hosts)

    def _make_times_row(self) -> list[float]:
        """Returns the compute times of this rank, or no times unless they are due. Reads events of the device."""
        if not self._must_exchange_times or self._observer is None:
            return make_row([], [])
        try:
            return make_row(*self._observer.compute_times())
        except Exception as error:  # noqa: BLE001 (the other ranks wait for the exchange)
            self._disable(error)
            return make_row([], [])

    def _stop_exchange(self) -> None:
        while self._undo_functions:
            self._undo_functions.pop()()
        self._exchanged_times = None

    @isolate_errors
    def _finish_epoch(self, trainer: pl.Trainer, difference: float) -> None:
        """Ends an epoch and diagnoses."""
        if self._observer is not None:
            self._observer.on_train_epoch_end(difference)
            self._diagnose(trainer)

    @isolate_errors
    def _start_observing(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Starts observing. Waits for the first batch if lazy layers have no parameters yet."""
        self._waits_for_parameters = any(is_lazy(parameter) for parameter in module.parameters())
        if self._waits_for_parameters:
            return
        callbacks = internals.callbacks(trainer)
        gradient_monitors = (callback for callback in callbacks if isinstance(callback, GradientNormMonitor))
        unit_detectors = (callback for callback in callbacks if isinstance(callback, DeadNeuronDetector))
        traces_steps = bool(self._rules.needs & TRACED_TOPICS)
        cadence = Cadence(self.every_n_steps, TRACE_INTERVAL, first_steps=1)
        if traces_steps:
            Probe.of(trainer).budget.add("traces", cadence, self.budget)
        self._observer = TrainingObserver(
            trainer,
            module,
            next(gradient_monitors, None),
            next(unit_detectors, None),
            self.loss,
            self.validation_metric,
            cadence,
            traces_steps=traces_steps,
            times_ranks="ranks" in self._rules.needs,
        )
        if self._observer_state is not None:
            self._observer.load_state_dict(self._observer_state)

    def _disable(self, error: Exception) -> None:
        """Stops observing and warns about the error."""
        observer, self._observer, self._waits_for_parameters = self._observer, None, False
        with suppress(Exception):  # its hooks may have failed
            if observer is not None:
                observer.stop()
        self._has_failed = True
        if not is_raised_by_signal_handler(error):  # which ends the run
            warnings.warn(f"TrainingHealth {describe_error(error)}. The run continues without diagnosis.", stacklevel=2)

    def _stop_observing(self) -> None:
        """Keeps the measurements and removes all hooks."""
        assert self._observer is not None
        self._observer_state = self._observer.state_dict()
        self._observer.stop()
        self._observer = None

    def _diagnose(self, trainer: pl.Trainer) -> None:
        """Adds new findings and publishes changes. A known finding is replaced only if it becomes critical."""
        assert self._observer is not None
        record = self._observer.observe()
        diagnosis = self._rules.apply(record)
        self._missing_evidence, previous_evidence = diagnosis.missing_evidence, self._missing_evidence
        likely_problems, previous_problems = map(_likely_problems, (self._missing_evidence, previous_evidence))
        if likely_problems - previous_problems:
            self._observer.request_extra_measurements()
        for finding in diagnosis.findings:
            recorded_finding = self._findings_by_key.get((finding.problem, finding.severity == Severity.INFO))
            if recorded_finding is None or (recorded_finding.severity != finding.severity == Severity.CRITICAL):
                self._findings_by_key[finding.problem, finding.severity == Severity.INFO] = self._override_advice(
                    finding
                )
        self._downgrade(diagnosis.obsolete_problems, record.step)
        previous_findings = {(finding.problem, finding.severity): finding for finding in self._findings}
        self._findings = self._rules.find_root_causes(self._findings_by_key.values())
        for finding in self._findings:
            key = finding.problem, finding.severity
            if finding != previous_findings.get(key):
                self._publish(trainer, finding, is_new=key not in previous_findings)

    def _downgrade(self, problems: Iterable[str], step: int) -> None:
        """Downgrades findings that no longer apply at a step to severity INFO."""
        for problem in problems:
            finding = self._findings_by_key.pop((problem, False), None)
            if finding is not None:
                evidence = {**finding.evidence, "until_step": float(step)}
                self._findings_by_key[problem, True] = replace(
                    finding, severity=Severity.INFO, evidence=evidence, advice="", likely_cause=""
                )

    def _override_advice(self, finding: Finding) -> Finding:
        """Returns the finding with the advice of :attr:`advise`, if any."""
        advice = None if self.advise is None else self.advise(finding)
        return finding if advice is None else replace(finding, advice=advice)

    def _publish(self, trainer: pl.Trainer, finding: Finding, *, is_new: bool) -> None:
        """Logs a new finding, and appends a new or changed finding to the file."""
        if not is_rank_zero():
            return
        if is_new:
            log_finding(finding)
            send_alert(trainer.loggers, finding)
        if self.run_folder is not None:
            append_finding(self.run_folder / "findings.jsonl", finding)


def _likely_problems(missing_evidence: Mapping[str, NotEnoughEvidence]) -> set[str]:
    """Returns the problems that are likely, but not certain yet."""
    return {problem for problem, entry in missing_evidence.items() if entry.is_likely}
