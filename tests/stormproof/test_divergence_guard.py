"""A training that diverges: what is looked at, what is skipped, and when it ends."""

from __future__ import annotations

import math
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins import MixedPrecision
from torch import nn

from stormproof import DivergenceGuard
from stormproof.divergence.detector import MAX_OVERFLOWS
from stormproof.errors import DivergedError, NotResumableError
from stormproof.testing import FaultInjector
from tests.stormproof.divergence.diverging_fits import (
    IGNORE_WARNINGS,
    NAN,
    SPIKE,
    STEPS,
    Classifier,
    StateRecorder,
    fit_with_guard,
    is_finite,
    make_loader,
    spike_at,
)
from tests.support.cases import slow_except
from tests.support.recovery_fits import checkpoint_steps
from tests.support.small_fits import BOTH_PACKAGES, RowsLogger, make_module, make_trainer

pytestmark = IGNORE_WARNINGS


OPTIMIZERS = {
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.01),
    "fused adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.01, fused=True),
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.01, momentum=0.9, weight_decay=0.1),
    "rmsprop": lambda parameters: torch.optim.RMSprop(parameters, lr=0.01),
}


@pytest.mark.parametrize(
    ("name", "factor", "scaled"),
    slow_except(
        product(OPTIMIZERS, [NAN, SPIKE], [False, True]),
        [("adamw", NAN, False), ("adamw", SPIKE, False), ("fused adamw", SPIKE, True), ("sgd", NAN, True)],
    ),
)
def test_an_anomalous_step_is_skipped_and_leaves_no_trace(name: str, factor: float, scaled: bool, tmp_path: Path):
    kind = type("Kind", (Classifier,), {"optimizer": staticmethod(OPTIMIZERS[name])})
    guard, states = DivergenceGuard("skip"), StateRecorder()
    options: dict[str, Any] = {}
    if scaled:
        options["plugins"] = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=8.0))
    fit = fit_with_guard(tmp_path, guard, spike_at(50, factor=factor), states, kind=kind, **options)
    assert repr(states.after[50]) == repr(states.after[49])
    assert repr(states.after[51]) != repr(states.after[49])
    assert fit.global_step == STEPS
    assert guard.skipped == (0 if scaled and factor is NAN else 1)  # that one the scaler refuses by itself
    assert guard.rollbacks == 0


@BOTH_PACKAGES
@pytest.mark.parametrize("action", ["skip", "rollback"])
def test_either_action_skips_what_it_can(action: Any, lightning: Any, tmp_path: Path):
    guard = DivergenceGuard(action)
    fit = fit_with_guard(tmp_path, guard, spike_at(20), lightning=lightning)
    assert (guard.skipped, guard.rollbacks) == (1, 0)
    assert is_finite(fit.lightning_module)


def test_all_batches_of_an_accumulated_step_go_together(tmp_path: Path):
    guard, states = DivergenceGuard("skip"), StateRecorder()
    faults = FaultInjector().spike(NAN, step=9)  # the first of the four batches of the tenth step
    fit_with_guard(tmp_path, guard, faults, states, accumulate_grad_batches=4)
    assert repr(states.after[10]) == repr(states.after[9])
    assert guard.skipped == 1


def test_a_loss_is_judged_as_the_sum_over_an_accumulated_step(tmp_path: Path):
    guard = DivergenceGuard("skip")
    fit_with_guard(tmp_path, guard, FaultInjector(), accumulate_grad_batches=2)
    (state,) = guard.state_dict()["detectors"].values()
    assert len(state["series"]["loss"]["values"]) == STEPS // 2
    assert state["series"]["loss"]["values"][0] == pytest.approx(math.log(2), rel=0.5)


def test_stop_ends_the_training_before_the_anomalous_step(tmp_path: Path):
    states = StateRecorder()
    with pytest.raises(
        DivergedError, match=r"training diverges at step 42: the (loss|gradient norm) is nan: "
    ) as ended:
        fit_with_guard(tmp_path, DivergenceGuard("stop"), spike_at(42), states)
    assert ended.value.exit_code == 76
    assert checkpoint_steps(tmp_path)[-1] == 40
    assert max(states.after) == 41


def test_consecutive_skipped_steps_give_one_warning(tmp_path: Path):
    with pytest.warns(match="the step is skipped") as warning_records:
        fit_with_guard(tmp_path, DivergenceGuard("skip"), spike_at(20, 30, 31))
    messages = [str(warning.message) for warning in warning_records if "the step is skipped" in str(warning.message)]
    assert [message.partition(":")[0] for message in messages] == ["step 20", "step 30"]
    assert messages[1].endswith("the step is skipped (anomaly 2 of 5 allowed in 1000 steps)")


def test_too_many_anomalies_ends_the_training(tmp_path: Path):
    with pytest.raises(DivergedError, match=r"step 30: .* is nan \(anomaly 3 within 1000 steps, max_rollbacks is 2\)"):
        fit_with_guard(tmp_path, DivergenceGuard("skip", max_rollbacks=2), spike_at(10, 20, 21, 22, 30))


def test_one_now_and_then_does_not(tmp_path: Path):
    guard = DivergenceGuard("skip", max_rollbacks=2, rollback_window_steps=15)
    assert fit_with_guard(tmp_path, guard, spike_at(10, 20, 30, 40, 50)).global_step == STEPS
    assert guard.skipped == 5


def test_skipping_that_does_not_help_ends_the_training(tmp_path: Path):
    with pytest.raises(DivergedError, match=r"step 39: .* is nan \(10 consecutive anomalous steps\)"):
        fit_with_guard(tmp_path, DivergenceGuard("skip"), spike_at(*range(30, 60)))


@pytest.mark.slow
@pytest.mark.parametrize("scaler", [None, False])
@pytest.mark.parametrize("options", [{"gradient_clip_val": 1.0, "gradient_clip_algorithm": "value"}, {}])
def test_hooks_and_clipping_see_the_gradient_before_it_is_skipped(options: Any, scaler: Any, tmp_path: Path):
    class Looks(Classifier):
        optimizer = staticmethod(OPTIMIZERS["adamw" if options else "fused adamw"])  # which Lightning does not clip

        def on_before_optimizer_step(self, optimizer: Any) -> None:
            assert all(weight.grad is not None for weight in self.net.parameters())

    if scaler is False:  # there, and of no effect
        options = {**options, "plugins": MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", enabled=False))}
    guard, states = DivergenceGuard("skip"), StateRecorder()
    fit_with_guard(tmp_path, guard, spike_at(50), states, kind=Looks, **options)
    assert guard.skipped == 1
    assert repr(states.after[50]) == repr(states.after[49])


def test_spikes_that_pass_do_not_count_and_what_is_not_finite_does(tmp_path: Path):
    guard = DivergenceGuard(max_rollbacks=1)
    fit = fit_with_guard(tmp_path, guard, spike_at(40, 44, 48, 52, factor=SPIKE))
    assert (guard.skipped, guard.rollbacks, fit.global_step) == (4, 0, STEPS)


def test_another_model_begins_with_nothing_remembered():
    guard = DivergenceGuard("skip")
    fit = make_trainer(callbacks=[spike_at(20), guard])
    fit.fit(make_module(kind=Classifier), make_loader())
    fit.fit_loop.max_epochs = 2
    fit.fit(make_module(kind=Classifier), make_loader())
    assert guard.skipped == 0


@pytest.mark.slow
def test_lbfgs_is_left_alone(tmp_path: Path):
    kind = type("Kind", (Classifier,), {"optimizer": staticmethod(torch.optim.LBFGS)})
    with pytest.warns(match="DivergenceGuard is inactive: it does not support LBFGS"):
        fit_with_guard(tmp_path, DivergenceGuard(), FaultInjector(), kind=kind)


def test_overflows_that_a_scaler_copes_with_are_no_anomaly(tmp_path: Path):
    guard = DivergenceGuard("stop")
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**30)
    fit = fit_with_guard(tmp_path, guard, FaultInjector(), plugins=MixedPrecision("16-mixed", "cpu", scaler))
    assert fit.global_step == STEPS
    assert scaler.get_scale() < 2.0**25
    assert guard.skipped == 0


def test_a_scaler_that_refuses_step_after_step_copes_no_longer(tmp_path: Path):
    scaler = torch.amp.GradScaler("cpu")
    with pytest.raises(DivergedError, match=f"diverges at step {10 + MAX_OVERFLOWS}: "):
        fit_with_guard(
            tmp_path,
            DivergenceGuard("stop"),
            spike_at(*range(11, 60)),
            plugins=MixedPrecision("16-mixed", "cpu", scaler),
        )


def test_what_it_did_is_logged(tmp_path: Path):
    rows = RowsLogger()
    fit_with_guard(tmp_path, DivergenceGuard(), spike_at(20, 43, 44, 45), logger=rows)
    logged_rows = [(step, row) for step, row in rows.rows if "divergence/skipped_steps" in row]
    assert [step for step, _ in logged_rows] == [19, 42, 43, 44]
    assert logged_rows[-1][1] == {
        "divergence/skipped_steps": 4.0, "divergence/rollbacks": 1.0, "divergence/lr_factor": 1.0, "epoch": 0.0,
    }  # fmt: skip


class TwoOptimizers(Classifier):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.other = nn.Linear(4, 2)

    def training_step(self, batch: Any, batch_idx: int) -> None:
        inputs, factor, target = batch
        for net, optimizer in zip((self.net, self.other), self.optimizers(), strict=True):
            scale = factor[:, :1] if net is self.other else 1.0
            optimizer.zero_grad()
            self.manual_backward(nn.functional.cross_entropy(net(inputs.nan_to_num()) * scale, target))
            optimizer.step()

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(net.parameters(), lr=0.1) for net in (self.net, self.other)]


@pytest.mark.slow
def test_in_manual_optimization_the_step_of_one_optimizer_is_skipped(tmp_path: Path):
    guard, states = DivergenceGuard("skip"), StateRecorder()
    fit_with_guard(tmp_path, guard, spike_at(41), states, kind=TwoOptimizers)
    assert guard.skipped == 1
    assert torch.equal(states.after[42][0]["other.weight"], states.after[40][0]["other.weight"])
    assert not torch.equal(states.after[42][0]["net.3.bias"], states.after[40][0]["net.3.bias"])


def test_where_nothing_can_be_seen_it_says_so(tmp_path: Path):
    with pytest.warns(match="DivergenceGuard is inactive: with manual optimization"):
        fit_with_guard(tmp_path, DivergenceGuard(every_n_steps=10), FaultInjector(), kind=TwoOptimizers)


def test_going_back_takes_a_recovery_and_skipping_does_not():
    with pytest.raises(NotResumableError, match="requires CheckpointRecovery: add CheckpointRecovery to the callbacks"):
        make_trainer(callbacks=[DivergenceGuard()]).fit(make_module(kind=Classifier), make_loader())
    guard = DivergenceGuard("skip")
    make_trainer(callbacks=[spike_at(20), guard]).fit(make_module(kind=Classifier), make_loader())
    assert guard.skipped == 1


def test_rollback_warns_if_too_few_checkpoints_are_kept(tmp_path: Path):
    with pytest.warns(match="Set its keep_last to 4 or save less often"):
        fit_with_guard(tmp_path, DivergenceGuard(), FaultInjector(), every=3)


def test_a_strategy_that_spreads_gradients_over_the_ranks_is_refused():
    class FSDPStrategy(pl.strategies.SingleDeviceStrategy):
        def optimizer_state(self, optimizer: Any) -> Any:  # as the real one does
            return super().optimizer_state(optimizer)

    with pytest.raises(NotResumableError, match=r"gradient norm that is known on all ranks, .*FSDPStrategy"):
        make_trainer(callbacks=[DivergenceGuard("skip")], strategy=FSDPStrategy(torch.device("cpu"))).fit(
            make_module(kind=Classifier), make_loader()
        )


def test_a_new_training_begins_with_nothing_remembered():
    guard = DivergenceGuard("skip")
    for _ in range(2):
        make_trainer(callbacks=[spike_at(20), guard]).fit(make_module(kind=Classifier), make_loader())
        assert guard.skipped == 1


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"action": "retry"}, "got 'retry'"),
        ({"every_n_steps": 0}, "`every_n_steps` must be at least 1 or None, got 0"),
        ({"action": "skip", "every_n_steps": 2}, "must be 1 with action='skip', got 2"),
        ({"lr_factor": 0.0}, "`lr_factor` .*, got 0.0"),
        ({"lr_factor": 1.1}, "`lr_factor` .*, got 1.1"),
        ({"max_rollbacks": -1}, "`max_rollbacks` .*, got -1"),
        ({"rollback_window_steps": 0}, "`rollback_window_steps` .*, got 0"),
        ({"window": 31}, "got window=31"),
        ({"spike_sigma": 0.0}, "got spike_sigma=0"),
    ],
)
def test_a_value_out_of_its_range_is_refused(arguments: dict[str, Any], sentence: str):
    with pytest.raises(ValueError, match=sentence):
        DivergenceGuard(**arguments)
