"""Installed tools with their defaults, as callbacks for scripts/benchmarks/diagnosis.py.

- ARC (arc-training) checks loss, gradients and weights, and rolls back after a failure. The callback undoes rollbacks,
  because all tools judge the same run. In its first 50 steps, ARC calibrates and reports only NaN and infinity.
- trainscope reports change points of the loss. By default, these include sudden falls.
- traintools inspects batches and gradients at each step and activations once per epoch, and forecasts the validation
  loss.
- losslint and trainproof read a log with one line per batch. The callbacks check it after each epoch or an error.
- torch-audit audits batches, layers, gradients and weights at each step, as in its example for Lightning. Its hints
  about hardware are warnings and concern almost all networks. A second entry disables these rules (TA200 to TA203).
- torchmortem collects statistics during the run and reports once, after the run.
- NeuralDBG is the free edition, without neuraldbg-engine. A finding is an event that enters an unhealthy state.

Findings that a tool calls "info" are recorded with this severity. ``PROBLEMS`` maps the kinds of findings. These kinds
have no counterpart and are mapped to the nearest problem:

- traintools: empty tensors and rare labels.
- trainproof: zero, flat and slowly falling losses.
- torch-audit: hints about hardware, weight decay, memory layout, kernel sizes, small batches and layers used twice.
- torchmortem: noisy gradients, rank collapse, and growing or unequal weight norms.
- NeuralDBG: distribution shifts between the tensors of a layer.

Not suitable:

- TrainCheck (traincheck) has no default rules. It infers invariants from a healthy run of a reference program.
- PulseML (pulseml) reads the variables of a script a few times per second, which misses most steps of these runs.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Mapping
from contextlib import chdir
from copy import deepcopy
from importlib import import_module, metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import torch
from diagnosis_baselines import Peer

from stormproof.finding import Finding, Problem, Severity

REQUIREMENTS = {
    "ARC": "arc-training==5.2.0.post1",
    "trainscope": "trainscope==1.8.1",
    "traintools": "traintools==0.6.2",
    "losslint": "losslint==0.4.1",
    "trainproof": "trainproof==0.22.0",
    "torch-audit": "torch-audit==0.3.0",
    "torch-audit without hardware hints": "torch-audit==0.3.0",
    "torchmortem": "torchmortem==0.1.1",
    "NeuralDBG": "neuraldbg==1.3.2",
}
"""Distribution and version of each tool."""

PROBLEMS: dict[str, dict[str, Problem]] = {
    "ARC": {
        "nan_loss": Problem.NON_FINITE,
        "nan_gradients": Problem.NON_FINITE,
        "nan_weights": Problem.NON_FINITE,
        "loss_explosion": Problem.LOSS_SPIKE,
        "gradient_explosion": Problem.EXPLODING_GRADIENTS,
        "lyapunov_divergence": Problem.LEARNING_RATE_TOO_HIGH,
        "drift_detected": Problem.LEARNING_RATE_TOO_HIGH,
        "weight_sparsity_explosion": Problem.DEAD_UNITS,
        "weight_magnitude_collapse": Problem.OUTPUT_IGNORES_INPUT,
    },
    "trainscope": {"spike": Problem.LOSS_SPIKE, "non-finite loss": Problem.NON_FINITE},
    "traintools": {  # substrings of the warnings
        "non-finite gradients": Problem.NON_FINITE,
        "gradient appears vanished": Problem.VANISHING_GRADIENTS,
        "gradient is very large": Problem.EXPLODING_GRADIENTS,
        "update/weight ratio is high": Problem.LEARNING_RATE_TOO_HIGH,
        "update/weight ratio is tiny": Problem.LEARNING_RATE_ZERO,
        "no gradients found": Problem.NO_GRADIENT,
        "has non-finite values": Problem.NON_FINITE_DATA,
        "abs max": Problem.INPUT_BADLY_SCALED,
        "inputs is nearly constant": Problem.INPUT_BADLY_SCALED,
        "targets is nearly constant": Problem.DEGENERATE_TARGETS,
        "is nearly constant": Problem.INPUT_BADLY_SCALED,
        "is empty": Problem.NON_FINITE_DATA,
        "dominant class covers": Problem.DEGENERATE_TARGETS,
        "labels outside": Problem.UNREACHABLE_TARGETS,
        "critical layers": Problem.DEAD_UNITS,
        "stop": Problem.PLATEAU,
    },
    "losslint": {
        "nan_inf": Problem.NON_FINITE,
        "divergence": Problem.LEARNING_RATE_TOO_HIGH,
        "loss_spike": Problem.LOSS_SPIKE,
        "overfit_onset": Problem.OVERFITTING,
        "stagnation": Problem.PLATEAU,
    },
    "trainproof": {
        "TP-NAN": Problem.NON_FINITE,
        "TP-NAN-GRAD": Problem.NON_FINITE,
        "TP-ZERO-LOSS": Problem.DEGENERATE_TARGETS,
        "TP-ZERO-LOSS-ONSET": Problem.PLATEAU,
        "TP-FLAT": Problem.NO_BETTER_THAN_CONSTANT,
        "TP-DEAD-RUN": Problem.NO_BETTER_THAN_CONSTANT,
        "TP-DIVERGE": Problem.LEARNING_RATE_TOO_HIGH,
        "TP-ZERO-GRAD": Problem.NO_GRADIENT,
        "TP-GRAD-SPIKE": Problem.EXPLODING_GRADIENTS,
        "TP-ZERO-LR": Problem.LEARNING_RATE_ZERO,
        "TP-ZERO-LR-PARTIAL": Problem.LEARNING_RATE_ZERO,
        "TP-OVERFIT": Problem.OVERFITTING,
        "TP-LOADER-BOUND": Problem.DATA_STARVATION,
    },
    "torch-audit": {
        "TA100": Problem.NON_FINITE,
        "TA102": Problem.EXPLODING_GRADIENTS,
        "TA103": Problem.DEAD_UNITS,
        "TA104": Problem.NO_GRADIENT,
        "TA105": Problem.DEAD_UNITS,
        "TA200": Problem.SLOW_RANK,
        "TA201": Problem.SLOW_RANK,
        "TA202": Problem.SLOW_RANK,
        "TA203": Problem.SLOW_RANK,
        "TA300": Problem.INPUT_BADLY_SCALED,
        "TA301": Problem.INPUT_BADLY_SCALED,
        "TA302": Problem.INPUT_BADLY_SCALED,
        "TA303": Problem.INPUT_BADLY_SCALED,
        "TA304": Problem.BATCH_NORM_STATISTICS_LAG,
        "TA305": Problem.INPUT_BADLY_SCALED,
        "TA400": Problem.NO_GRADIENT,
        "TA401": Problem.LEARNING_RATE_TOO_HIGH,
        "TA402": Problem.LEARNING_RATE_TOO_HIGH,
        "TA403": Problem.LEARNING_RATE_TOO_HIGH,
        "TA404": Problem.INPUT_BADLY_SCALED,
        "TA405": Problem.DEAD_UNITS,
        "TA500": Problem.NO_GRADIENT,
        "TA501": Problem.BATCH_NORM_STATISTICS_LAG,
    },
    "torchmortem": {  # the titles without the layer
        "Vanishing gradients detected": Problem.VANISHING_GRADIENTS,
        "Exploding gradients detected": Problem.EXPLODING_GRADIENTS,
        "Gradient stalling": Problem.NO_GRADIENT,
        "Dead units": Problem.DEAD_UNITS,
        "Activation saturation": Problem.SATURATED_UNITS,
        "Update ratio too low": Problem.LEARNING_RATE_TOO_LOW,
        "Update ratio too high": Problem.LEARNING_RATE_TOO_HIGH,
        "Training divergence detected": Problem.LEARNING_RATE_TOO_HIGH,
        "Loss plateau detected": Problem.PLATEAU,
        "Catapult phase detected": Problem.LOSS_SPIKE,
        "Edge of stability regime detected": Problem.LEARNING_RATE_TOO_HIGH,
        "Rank collapse": Problem.OUTPUT_IGNORES_INPUT,
        "Weight norm explosion": Problem.LEARNING_RATE_TOO_HIGH,
        "Stagnant weight norms": Problem.WEIGHTS_UNCHANGED,
        "Inter-layer weight norm imbalance": Problem.LEARNING_RATE_TOO_HIGH,
        "High gradient noise (low SNR)": Problem.LEARNING_RATE_TOO_HIGH,
    },
    "NeuralDBG": {
        "vanishing": Problem.VANISHING_GRADIENTS,
        "exploding": Problem.EXPLODING_GRADIENTS,
        "gradient_health_transition saturated": Problem.VANISHING_GRADIENTS,
        "activation_regime_shift saturated": Problem.SATURATED_UNITS,
        "dead": Problem.DEAD_UNITS,
        "anomalous": Problem.NON_FINITE,
        "loss_plateau": Problem.PLATEAU,
        "loss_spike": Problem.LOSS_SPIKE,
        "diverging": Problem.NON_FINITE,
        "nan_detected": Problem.NON_FINITE_DATA,
        "inf_detected": Problem.NON_FINITE_DATA,
        "distribution_shift": Problem.INPUT_BADLY_SCALED,
    },
}
"""Problem of each kind of finding, by tool."""


def split_batch(batch: Any) -> tuple[Any, Any]:
    """Returns the inputs and the targets of a batch. The targets are None unless the batch is a pair."""
    return (batch[0], batch[1]) if isinstance(batch, list | tuple) and len(batch) == 2 else (batch, None)


class InstalledPeer(Peer):
    """Records the first finding of each problem and severity.

    Attributes:
        tool: Main object of the tool. None before training.
        loss: Loss of the last backward pass.
    """

    NAME: ClassVar[str]

    def __init__(self) -> None:
        super().__init__()
        self.tool: Any = None
        self.loss = math.nan

    def report(self, kind: str, step: int, severity: Severity = Severity.WARNING) -> None:
        problem = PROBLEMS[self.NAME][kind]
        if all((finding.problem, finding.severity) != (problem, severity) for finding in self.findings):
            self.findings.append(Finding(problem, severity, "", step, step, text=kind))

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: torch.Tensor) -> None:
        self.loss = float(loss.detach()) * trainer.accumulate_grad_batches

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self._close(trainer, completed=True)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self._close(trainer, completed=False)

    def _close(self, trainer: Any, completed: bool) -> None:
        if self.tool is not None:
            self.finish(trainer, completed)
            self.tool = None

    def finish(self, trainer: Any, completed: bool) -> None:
        """Ends the tool's work after the last step or after an error."""


class Arc(InstalledPeer):
    NAME = "ARC"

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        arc = import_module("arc")
        self.tool = arc.Controller(pl_module, trainer.optimizers[0], config=arc.ControllerConfig(verbose=False))

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        if optimizer is not self.tool.optimizer:
            return
        before = deepcopy((pl_module.state_dict(), optimizer.state_dict()))
        gradients = [None if tensor.grad is None else tensor.grad.clone() for tensor in pl_module.parameters()]
        rng_state = torch.get_rng_state()
        action = self.tool.step(torch.tensor(self.loss))
        if action.failure_type is None:
            return
        self.report(action.failure_type.split(" (")[0], trainer.global_step)
        pl_module.load_state_dict(before[0])
        optimizer.load_state_dict(before[1])
        for tensor, gradient in zip(pl_module.parameters(), gradients, strict=True):
            tensor.grad = gradient
        torch.set_rng_state(rng_state)

    def finish(self, trainer: Any, completed: bool) -> None:
        self.tool.close()


class Trainscope(InstalledPeer):
    NAME = "trainscope"

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        trainscope = import_module("trainscope")
        logging.getLogger("trainscope").setLevel(logging.ERROR)
        self.folder = TemporaryDirectory()
        config = import_module("trainscope.core.config").TrainScopeConfig(run_dir=self.folder.name)
        self.tool = trainscope.TrainScope(pl_module, trainer.optimizers[0], config=config).attach()

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        if not math.isfinite(self.loss):  # trainscope logs a warning, which is silenced here
            self.report("non-finite loss", trainer.global_step)
        if self.tool.step(self.loss):
            self.report("spike", trainer.global_step)

    def finish(self, trainer: Any, completed: bool) -> None:
        self.tool.detach()
        self.folder.cleanup()


class Traintools(InstalledPeer):
    NAME = "traintools"

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        traintools = import_module("traintools")
        self.batches = traintools.BatchInspector()
        self.gradients = traintools.GradientHealthMonitor()
        self.guard = traintools.TrainGuard()
        self.tool = traintools.PlasticityProbe(pl_module)

    def _report_all(self, warnings: list[str], step: int) -> None:
        for warning in warnings:
            self.report(next(kind for kind in PROBLEMS[self.NAME] if kind in warning), step)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        inputs, targets = split_batch(batch)
        targets = targets if isinstance(targets, torch.Tensor) else None
        self._report_all(self.batches.inspect(inputs, targets, step=trainer.global_step).warnings, trainer.global_step)

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        step, lr = trainer.global_step, optimizer.param_groups[0]["lr"]
        self._report_all(self.gradients.inspect(pl_module, step=step, lr=lr).warnings, step)

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        if self.tool is not None:
            self._measure_activations(trainer.global_step)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        if self.tool is None:
            return
        self.tool.reset_buffers()
        if "val_loss" in trainer.callback_metrics:
            self.guard.record(step=trainer.global_step, val_loss=float(trainer.callback_metrics["val_loss"]))
            if self.guard.evaluate().should_stop:
                self.report("stop", trainer.global_step)

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        super().on_train_epoch_end(trainer, pl_module)
        self._measure_activations(trainer.global_step)

    def _measure_activations(self, step: int) -> None:
        if self.tool.measure(step=step).critical_layers:
            self.report("critical layers", step)
        self.tool.reset_buffers()

    def finish(self, trainer: Any, completed: bool) -> None:
        self.tool.remove_hooks()


class LogReader(InstalledPeer):
    """Writes a log with one line per batch and per validation, and checks it at the end of each epoch."""

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.folder = TemporaryDirectory()
        self.tool = Path(self.folder.name) / "run.jsonl"
        self.last: dict[str, float] = {}

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        self.batch_end = time.perf_counter()

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.last["loader_time"] = time.perf_counter() - self.batch_end

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        gradients = [tensor.grad for tensor in pl_module.parameters() if tensor.grad is not None]
        self.last["grad_norm"] = float(torch.nn.utils.get_total_norm(gradients))
        self.last["lr"] = optimizer.param_groups[0]["lr"]

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        now = time.perf_counter()
        self.last["step_time"] = now - self.batch_end
        loss = self.losses[-1] if self.losses else self.loss
        self._write({"step": trainer.global_step, "loss": loss, **self.last})
        self.batch_end = time.perf_counter()

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        if self.tool is not None and "val_loss" in trainer.callback_metrics:
            self._write({"step": trainer.global_step, "eval_loss": float(trainer.callback_metrics["val_loss"])})
        self.batch_end = time.perf_counter()

    def _write(self, values: Mapping[str, float]) -> None:
        with self.tool.open("a") as log:
            log.write(f"{json.dumps(values)}\n")

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        super().on_train_epoch_end(trainer, pl_module)
        self.check(trainer.global_step)

    def check(self, step: int) -> None:
        """Checks the log so far."""
        raise NotImplementedError

    def finish(self, trainer: Any, completed: bool) -> None:
        if not completed and self.tool.exists():
            self.check(trainer.global_step)
        self.folder.cleanup()


class Losslint(LogReader):
    NAME = "losslint"

    def check(self, step: int) -> None:
        run = import_module("losslint.parsing").load_run(self.tool)
        for finding in import_module("losslint.checks").run_all_checks(run):
            self.report(finding.check, step, Severity.INFO if finding.severity == "info" else Severity.WARNING)


class Trainproof(LogReader):
    NAME = "trainproof"
    MIN_LOSSES = 10  # as in `trainproof watch`
    IGNORED = "TP-STEP-CLIFF"  # steps become slower whenever another process uses the machine

    def check(self, step: int) -> None:
        if self.tool.read_text().count('"loss"') < self.MIN_LOSSES:
            return
        for finding in import_module("trainproof.epoch").check_epoch(self.tool)["findings"]:
            if finding["level"] in ("WARN", "FAIL") and finding["id"] != self.IGNORED:
                self.report(finding["id"], step)


class TorchAudit(InstalledPeer):
    NAME = "torch-audit"
    IGNORED: ClassVar[frozenset[str]] = frozenset()

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.audit = import_module("torch_audit")
        self.model = pl_module
        self.tool = self.audit.Auditor(
            pl_module,
            optimizer=trainer.optimizers[0],
            every_n_steps=1,  # as in its example for Lightning; the default of 1000 is meant for longer runs
            ignore_rules=set(self.IGNORED),
            suppress_internal_errors=True,
        )
        self.tool.attach()
        self.tool.audit_static()
        self.tool.audit_init()
        self._report_new(0)

    def _report_new(self, step: int) -> None:
        for finding in self.tool.pop_new_findings():
            severity = Severity.INFO if finding.severity == self.audit.Severity.INFO else Severity.WARNING
            self.report(finding.rule_id, step, severity)

    def _context(self, phase: Any, step: int) -> Any:
        context = import_module("torch_audit.context")
        state = context.AuditState(self.model, step, phase, self.batch, self.tool.optimizer)
        return context.AuditContext(state)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.batch, _ = split_batch(batch)
        self.tool.audit_data(self.batch, step=trainer.global_step)
        for validator in self.tool.validators:
            validator.on_phase_start(self._context(self.audit.Phase.FORWARD, trainer.global_step))
        self._report_new(trainer.global_step)

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        self.tool.runner.run_step(self._context(self.audit.Phase.BACKWARD, trainer.global_step))
        self._report_new(trainer.global_step)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        batch_rules = import_module("torch_audit.validators.builtin.data").DataValidator
        rules = [rule for rule in self.tool.validators if not isinstance(rule, batch_rules)]
        for phase in (self.audit.Phase.FORWARD, self.audit.Phase.OPTIMIZER):
            self.tool.runner.run_step(self._context(phase, trainer.global_step), validators=rules)
        self._report_new(trainer.global_step)

    def finish(self, trainer: Any, completed: bool) -> None:
        self.tool.detach()


class TorchAuditWithoutHardware(TorchAudit):
    IGNORED = frozenset({"TA200", "TA201", "TA202", "TA203"})


class Torchmortem(InstalledPeer):
    NAME = "torchmortem"

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        logging.getLogger("torchmortem").setLevel(logging.ERROR)
        self.tool = import_module("torchmortem").Autopsy(pl_module, optimizer=trainer.optimizers[0])
        self.tool.attach()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        self.tool.step(loss=self.losses[-1] if self.losses else self.loss)

    def finish(self, trainer: Any, completed: bool) -> None:
        self.tool.detach(is_complete=completed)
        for finding in self.tool.get_report().findings:
            severity = Severity.INFO if finding.severity.name == "INFO" else Severity.WARNING
            self.report(finding.title.split(" in ")[0], trainer.global_step, severity)


class NeuralDbg(InstalledPeer):
    NAME = "NeuralDBG"
    HEALTHY = ("healthy", "normal", "stable")

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        neuraldbg = import_module("neuraldbg")
        self.folder = TemporaryDirectory()
        with chdir(self.folder.name):  # it creates the folder of its cache here
            self.tool = neuraldbg.NeuralDbg(pl_module)
        self.tool.disk_cache = neuraldbg.TensorDiskCache(self.folder.name)
        self.tool.__enter__()
        self.reported = 0

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.tool.step = trainer.global_step

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self.tool.record_loss(self.loss)
        self._report_new()

    def _report_new(self) -> None:
        events = self.tool.get_events()
        for event in events[self.reported :]:
            if event.to_state not in self.HEALTHY:
                kind = f"{event.event_type.value} {event.to_state}"
                self.report(kind if event.to_state == "saturated" else event.to_state, event.step)
        self.reported = len(events)

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        if self.tool is not None:
            self.tool.is_monitoring = False

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        if self.tool is not None:
            self.tool.is_monitoring = True

    def finish(self, trainer: Any, completed: bool) -> None:
        self._report_new()
        self.tool.__exit__(None, None, None)
        self.folder.cleanup()


PEERS: dict[str, Callable[[], InstalledPeer]] = {
    "ARC": Arc,
    "trainscope": Trainscope,
    "traintools": Traintools,
    "losslint": Losslint,
    "trainproof": Trainproof,
    "torch-audit": TorchAudit,
    "torch-audit without hardware hints": TorchAuditWithoutHardware,
    "torchmortem": Torchmortem,
    "NeuralDBG": NeuralDbg,
}


def is_installed(requirement: str) -> bool:
    name, _, version = requirement.partition("==")
    try:
        return metadata.version(name) == version
    except metadata.PackageNotFoundError:
        return False


def installed_peers() -> dict[str, Callable[[], InstalledPeer]]:
    """Returns the installed tools, and prints how to install the other ones."""
    missing = sorted({requirement for requirement in REQUIREMENTS.values() if not is_installed(requirement)})
    if missing:
        print(f"Skips tools that are not installed. To compare them too: pip install {' '.join(missing)}")
    return {name: peer for name, peer in PEERS.items() if REQUIREMENTS[name] not in missing}
