"""Each quantity of a step is measured once, whatever the callbacks that use it."""

import copy
import functools
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from itertools import combinations
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins import Precision
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from stormproof import DeadNeuronDetector, DivergenceGuard, GradientNormMonitor, StepTimer, TrainingHealth
from stormproof.gradients import norms
from stormproof.probe import budget as budget_module
from stormproof.probe import probe as probe_module
from stormproof.probe.probe import Probe
from tests.support.small_fits import LIGHTNING_PYTORCH, LIGHTNING_WARNING_FILTERS, RowsLogger, make_trainer

pytestmark = LIGHTNING_WARNING_FILTERS
STEPS = 24
CALLBACKS: dict[str, Callable[[], pl.Callback]] = {
    "norms": lambda: GradientNormMonitor(every_n_steps=1, table=False),
    "units": lambda: DeadNeuronDetector(every_n_steps=1, table=False),
    "health": TrainingHealth,
    "guard": lambda: DivergenceGuard(action="skip"),
    "timer": StepTimer,
}
COMBINATIONS = [names for count in range(1, 6) for names in combinations(CALLBACKS, count)]


class Net(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 1))

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return self.net(batch[0]).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9)


def _fit(callbacks: list[pl.Callback], net: type[Net] = Net, **options: Any) -> tuple[Any, Net]:
    module = net()
    torch.manual_seed(1)
    trainer = make_trainer(callbacks=callbacks, **{"log_every_n_steps": 10, **options})
    trainer.fit(module, DataLoader(TensorDataset(torch.randn(4 * STEPS, 8)), batch_size=4))
    return trainer, module


class Counts(pl.Callback):
    """Starts a new count at the end of each batch, as the last callback."""

    def __init__(self) -> None:
        self.steps = [Counter[str]()]

    def count(self, name: str, function: Any) -> Any:
        def counted(*args: Any, **kwargs: Any) -> Any:
            self.steps[-1][name] += 1
            return function(*args, **kwargs)

        return counted

    def on_train_batch_end(self, *_: Any) -> None:
        self.steps.append(Counter())


@pytest.mark.parametrize("names", COMBINATIONS, ids="+".join)
def test_losses_and_norms_are_measured_once_and_only_if_used(names: tuple[str, ...], monkeypatch: pytest.MonkeyPatch):
    counts = Counts()
    monkeypatch.setattr(norms, "_foreach_norm", counts.count("norm", norms._foreach_norm))
    monkeypatch.setattr(torch.Tensor, "item", counts.count("loss", torch.Tensor.item))
    _fit([*(CALLBACKS[name]() for name in names), counts])
    step = counts.steps[15]  # neither traced nor logged
    assert step["norm"] == (1 if {"norms", "guard", "health"} & {*names} else 0)  # TrainingHealth adds a monitor
    assert step["loss"] == (1 if {"health", "guard"} & {*names} else 0)


def test_a_profiler_sees_the_hooks_of_each_callback():
    trainer, _ = _fit([make() for make in CALLBACKS.values()], profiler="simple", max_steps=2)
    actions = {action for action in trainer.profiler.recorded_durations if action.endswith("on_before_optimizer_step")}
    assert {f"[Callback]{name}" for name in ("GradientNormMonitor", "TrainingHealth")} <= {
        action.partition(".")[0].partition("{")[0] for action in actions
    }


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_is_left_after_training(fails: bool):
    class Fails(pl.Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            if fails:
                raise RuntimeError("stop")

    callbacks = [make() for make in CALLBACKS.values()]
    trainer = make_trainer(callbacks=[*callbacks, Fails()])
    try:
        trainer.fit(Net(), DataLoader(TensorDataset(torch.randn(8, 8)), batch_size=4))
    except RuntimeError:
        assert fails
    assert "profile" not in vars(trainer.profiler)
    assert not any(isinstance(value, Probe) for value in vars(trainer).values())
    assert "_on_before_fetch" not in vars(trainer.fit_loop.epoch_loop)
    assert "clip_grad_by_norm" not in vars(trainer.precision_plugin)


def test_changed_gradients_are_measured_again():
    trainer = make_trainer()
    probe = Probe.of(trainer)
    gradients = [torch.tensor([3.0]), torch.tensor([4.0])]
    first = probe.gradient_norms(gradients)
    assert probe.gradient_norms(list(gradients)) is first
    gradients[0].mul_(0.0)
    assert probe.gradient_norms(gradients).total == 4.0
    assert probe.gradient_norms(gradients[1:]).total == 4.0
    assert probe.gradient_norms([gradients[0].clone(), gradients[1]]).total == 4.0
    probe.close()


def test_a_copied_trainer_has_no_probe():
    trainer = make_trainer()
    probe = Probe.of(trainer)
    copied = Probe.of(copy.deepcopy(trainer))
    assert copied is not probe
    copied.close()
    probe.close()


@pytest.mark.parametrize("seconds", [1e-9, 1.0])
def test_the_budget_changes_what_is_measured_and_not_what_is_trained(seconds: float, monkeypatch: pytest.MonkeyPatch):
    """A clock that jumps makes measuring appear to be free or to take all of the time."""
    ticks = iter(range(10**9))
    monkeypatch.setattr(budget_module, "perf_counter", lambda: seconds * next(ticks))
    rows = RowsLogger()
    callbacks = [GradientNormMonitor(table=False), DeadNeuronDetector(table=False), TrainingHealth()]
    _, module = _fit(callbacks, logger=rows, max_epochs=3)
    _, plain = _fit([], max_epochs=3)
    weights, plain_weights = (nn.utils.parameters_to_vector(trained.parameters()) for trained in (module, plain))
    assert torch.equal(weights, plain_weights)
    intervals = [row["probe/gradients_interval"] for _, row in rows.rows if "probe/gradients_interval" in row]
    assert intervals == ([1.0, 1.0] if seconds < 1 else [1000.0, 1000.0])
    measured = {measurement.step for measurement in callbacks[0].history}
    logged = {*range(10, 3 * STEPS, 10)}
    assert measured == ({*range(1, 3 * STEPS + 1)} if seconds < 1 else {*range(1, 21)} | logged)


def test_values_of_logging_steps_do_not_depend_on_the_budget():
    def logged(**options: Any) -> list[tuple[int, float]]:
        rows = RowsLogger()
        _fit([GradientNormMonitor(table=False, **options)], logger=rows, max_epochs=3)
        return [(step, row["gradients/norm"]) for step, row in rows.rows if "gradients/norm" in row]

    assert logged(budget=1e-9) == logged(budget=1.0) == logged(every_n_steps=1)


def test_a_validation_is_no_part_of_a_step(monkeypatch: pytest.MonkeyPatch):
    class Validated(Net):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            clock.append(100.0)  # a long validation

    clock = [1.0]
    monkeypatch.setattr(probe_module, "time", SimpleNamespace(perf_counter=lambda: sum(clock)))
    seconds: list[float] = []
    monkeypatch.setattr(budget_module.Budget, "end_step", lambda self, step_seconds: seconds.append(step_seconds))
    data = DataLoader(TensorDataset(torch.randn(24, 8)), batch_size=4)
    make_trainer(callbacks=[GradientNormMonitor(table=False)], val_check_interval=2).fit(Validated(), data, data)
    assert len(seconds) == 5
    assert set(seconds) == {0.0}


class ChangesGradients(pl.Callback):
    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        if trainer.global_step == 5:
            for parameter in pl_module.parameters():
                parameter.grad.data.fill_(float("nan"))


class SpoilingMonitor(GradientNormMonitor):
    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        super().on_before_optimizer_step(trainer, pl_module, optimizer)
        ChangesGradients().on_before_optimizer_step(trainer, pl_module, optimizer)


@pytest.mark.parametrize(
    "before_guard",
    [
        lambda: [GradientNormMonitor(every_n_steps=1, table=False), ChangesGradients()],
        lambda: [ChangesGradients(), GradientNormMonitor(every_n_steps=1, table=False)],
        lambda: [SpoilingMonitor(every_n_steps=1, table=False)],
    ],
    ids=["after the monitor", "before the monitor", "in a subclass of the monitor"],
)
def test_changes_through_data_are_detected_by_later_callbacks(before_guard: Callable[[], list[pl.Callback]]):
    guard = DivergenceGuard(action="skip")
    with pytest.warns(UserWarning, match="step 6: the gradient norm is nan; the step is skipped"):
        _, module = _fit([*before_guard(), guard])
    assert guard.skipped == 1
    assert all(parameter.isfinite().all() for parameter in module.parameters())


@pytest.mark.parametrize("package", [pl, LIGHTNING_PYTORCH], ids=["pytorch_lightning", "lightning.pytorch"])
def test_a_callback_of_lightning_does_not_cause_a_second_measurement(package: Any, monkeypatch: pytest.MonkeyPatch):
    counts = Counts()
    monkeypatch.setattr(norms, "_foreach_norm", counts.count("norm", norms._foreach_norm))
    _fit([CALLBACKS["norms"](), package.callbacks.Timer(), CALLBACKS["guard"](), counts])
    assert counts.steps[15]["norm"] == 1


class SpoilsBeforeClipping(Net):
    def on_before_optimizer_step(self, optimizer: Any) -> None:
        for parameter in self.parameters():
            parameter.grad.data.mul_(3.0)


class ClipsItself(Net):
    def clip_gradients(self, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        SpoilsBeforeClipping.on_before_optimizer_step(self, optimizer)
        super().clip_gradients(optimizer, *args, **kwargs)


class SpoilsInADecoratedHook(Net):
    @functools.wraps(pl.LightningModule.on_before_optimizer_step)
    def on_before_optimizer_step(self, optimizer: Any) -> None:
        SpoilsBeforeClipping.on_before_optimizer_step(self, optimizer)


class ClipsTwice(Net):
    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None
    ) -> None:
        self.clip_gradients(optimizer, gradient_clip_val, "norm")
        SpoilsBeforeClipping.on_before_optimizer_step(self, optimizer)
        self.clip_gradients(optimizer, gradient_clip_val, "norm")


@pytest.mark.parametrize("precision", ["32-true", "64-true", "bf16-true", "bf16-mixed"])
@pytest.mark.parametrize("net", [Net, SpoilsBeforeClipping, SpoilsInADecoratedHook, ClipsItself, ClipsTwice])
def test_clipping_with_measured_norms_gives_the_weights_of_lightning(net: type[Net], precision: Any):
    options: dict[str, Any] = {"gradient_clip_val": 0.05, "precision": precision}
    _, module = _fit([CALLBACKS[name]() for name in ("norms", "guard", "health")], net, **options)
    _, plain = _fit([], net, **options)
    _, unclipped = _fit([], Net, precision=precision)
    weights, plain_weights, unclipped_weights = (
        nn.utils.parameters_to_vector(trained.parameters()) for trained in (module, plain, unclipped)
    )
    assert torch.equal(weights, plain_weights)
    assert not torch.equal(weights, unclipped_weights)


class SpoilingPrecision(Precision):
    def clip_gradients(self, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad.data.mul_(3.0)
        super().clip_gradients(optimizer, *args, **kwargs)


def test_a_precision_plugin_of_the_user_clips_itself():
    options: dict[str, Any] = {"gradient_clip_val": 0.05}
    _, module = _fit([CALLBACKS["norms"](), CALLBACKS["guard"]()], plugins=[SpoilingPrecision()], **options)
    _, plain = _fit([], plugins=[SpoilingPrecision()], **options)
    weights, plain_weights = (nn.utils.parameters_to_vector(trained.parameters()) for trained in (module, plain))
    assert torch.equal(weights, plain_weights)


def test_a_hook_without_a_module_counts_as_user_code():
    namespace: dict[str, Any] = {}
    exec("def hook(*_): pass", namespace)
    callback = pl.Callback()
    callback.on_before_optimizer_step = namespace["hook"]
    trainer, _ = _fit([CALLBACKS["norms"](), callback, CALLBACKS["guard"]()], gradient_clip_val=0.05)
    assert trainer.global_step == STEPS


@pytest.mark.parametrize(("net", "clips_itself"), [(Net, False), (SpoilsBeforeClipping, True), (ClipsTwice, True)])
def test_clipping_measures_gradients_again_only_if_the_module_may_change_them(
    net: type[Net], clips_itself: bool, monkeypatch: pytest.MonkeyPatch
):
    counts = Counts()
    clip_grad_norm = counts.count("clipped by torch", torch.nn.utils.clip_grad_norm_)
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", clip_grad_norm)
    _fit([CALLBACKS["norms"](), counts], net, gradient_clip_val=0.05)
    assert (counts.steps[15]["clipped by torch"] > 0) == clips_itself


@pytest.mark.parametrize("budget", [1e-9, 0.2, 1.0])
def test_every_logging_step_is_logged_though_an_earlier_callback_reads_the_measurements(budget: float):
    rows = RowsLogger()
    _fit([TrainingHealth(budget=budget)], logger=rows, max_epochs=5)
    assert [step for step, row in rows.rows if "gradients/norm" in row] == [*range(9, 5 * STEPS, 10)]


class TwoRates(Net):
    """Two optimizers, one of which steps at every third batch."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        first, second = self.optimizers()
        loss = self.net(batch[0]).square().mean()
        first.zero_grad()
        self.manual_backward(loss)
        first.step()
        if batch_idx % 3 == 0:
            second.step()
            second.zero_grad()

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(layer.parameters(), lr=0.01) for layer in (self.net[0], self.net[3])]


def test_norms_of_optimizers_with_different_rates_do_not_depend_on_the_budget():
    def logged(budget: float) -> list[tuple[int, dict[str, float]]]:
        rows, module = RowsLogger(), TwoRates()
        torch.manual_seed(1)
        make_trainer(
            callbacks=[GradientNormMonitor(budget=budget, table=False)], logger=rows, log_every_n_steps=10, max_epochs=6
        ).fit(module, DataLoader(TensorDataset(torch.randn(4 * STEPS, 8)), batch_size=4))
        values = [
            (step, {name: row[name] for name in row if name.startswith("gradients/norm")}) for step, row in rows.rows
        ]
        return [(step, norms) for step, norms in values if norms]

    assert logged(1e-9) == logged(1.0)


def test_a_monitor_that_is_added_in_training_measures_from_then_on():
    class Adds(pl.Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step == 5:
                trainer.callbacks.append(monitor)

    monitor = GradientNormMonitor(every_n_steps=1, table=False)
    _fit([StepTimer(), Adds()])
    assert len(monitor.history) == STEPS - 5


def test_the_work_of_the_last_callback_is_part_of_the_step(monkeypatch: pytest.MonkeyPatch):
    class Slow(GradientNormMonitor):
        def _log(self, trainer: Any) -> None:
            clock.append(100.0)

    clock, seconds = [1.0], []
    monkeypatch.setattr(probe_module, "time", SimpleNamespace(perf_counter=lambda: sum(clock)))
    monkeypatch.setattr(budget_module.Budget, "end_step", lambda self, step_seconds: seconds.append(step_seconds))
    _fit([Slow(table=False), DeadNeuronDetector(every_n_steps=1000, table=False)], log_every_n_steps=5)
    assert [step + 1 for step, value in enumerate(seconds) if value == 100.0] == [5, 10, 15, 20]


def test_the_time_of_a_step_of_a_detector_excludes_validation(monkeypatch: pytest.MonkeyPatch):
    clock, seconds = [1.0], []

    class Validated(Net):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            clock.append(100.0)

    monkeypatch.setattr(probe_module, "time", SimpleNamespace(perf_counter=lambda: sum(clock)))
    monkeypatch.setattr(budget_module.Budget, "end_step", lambda self, step_seconds: seconds.append(step_seconds))
    monkeypatch.setattr(budget_module.Cadence, "is_due", lambda *_: False)
    data = DataLoader(TensorDataset(torch.randn(24, 8)), batch_size=4)
    make_trainer(callbacks=[DeadNeuronDetector(table=False)], val_check_interval=2).fit(Validated(), data, data)
    assert seconds == [0.0] * 5


def test_a_subclass_that_does_not_call_super_has_no_negative_overhead():
    class Own(GradientNormMonitor):
        def on_train_batch_end(self, *_: Any) -> None:
            pass

    rows = RowsLogger()
    _fit([Own(table=False)], logger=rows, max_epochs=3)
    assert all(row["probe/overhead"] > 0 for _, row in rows.rows if "probe/overhead" in row)


@pytest.mark.parametrize("profiler", [None, "simple"])
def test_a_trainer_without_a_profiler_skips_profiling(profiler: str | None):
    class RecordsProfiler(pl.Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            skipped.append(trainer.profiler.profile is nullcontext)

    skipped: list[bool] = []
    _fit([GradientNormMonitor(table=False), RecordsProfiler()], profiler=profiler, max_steps=2)
    assert skipped == [profiler is None] * 2
