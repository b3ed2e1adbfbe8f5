"""A training that diverges: what is skipped, what it goes back to, and when it ends."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins import MixedPrecision
from recovery_fits import steps_in
from small_fits import BOTH, LIGHTNINGS_OWN, Rows, module, trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from stormproof import CheckpointRecovery, DivergenceGuard, resumable
from stormproof.detect.divergence import OVERFLOWS
from stormproof.errors import DivergedError, NotResumableError
from stormproof.testing import Faults, flip_bit

pytestmark = [
    *LIGHTNINGS_OWN,
    pytest.mark.filterwarnings("ignore:step .*"),  # the guard's own
    pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step.. before `optimizer.step"),
]
NAN, SPIKE = math.nan, 1e4
STEPS = 64


class Classifier:
    """Sixty-four steps of a small classification."""

    optimizer: Any = staticmethod(lambda parameters: torch.optim.AdamW(parameters, lr=0.01))

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.BatchNorm1d(16), nn.Linear(16, 2))

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[2]) * batch[1].mean()

    def configure_optimizers(self) -> Any:
        return self.optimizer(self.net.parameters())


class Validated(Classifier):
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[2])
        self.log("val/loss", loss)  # type: ignore[attr-defined]


def data() -> DataLoader[Any]:
    """Inputs, a factor of the loss that a fault changes, targets."""
    inputs = torch.randn(STEPS * 8, 4, generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(inputs, torch.ones(len(inputs), 1), (inputs[:, 0] > 0).long()), batch_size=8)


class States(pl.Callback):
    """The state after each step."""

    def __init__(self) -> None:
        self.after: dict[int, Any] = {}

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        optimizers = [optimizer.state_dict()["state"] for optimizer in trainer.optimizers]
        self.after.setdefault(trainer.global_step, copy.deepcopy([pl_module.state_dict(), optimizers]))


def fit_with(
    folder: Path, guard: DivergenceGuard, faults: Any, *others: Any, kind: type = Classifier, **options: Any
) -> Any:
    recovery = CheckpointRecovery(folder, every_n_steps=options.pop("every", 8), asynchronous=False)
    lightning = options.pop("lightning", pl)
    callbacks = [faults, guard, *others, recovery]
    fit = trainer(lightning, callbacks=callbacks, **options)
    val = [data()] if kind is Validated else []
    fit.fit(module(lightning, kind), resumable(data()), *val, ckpt_path=recovery.latest())
    return fit


def at(*steps: int, factor: float = NAN) -> Faults:
    """Ruins the batches of these steps, from 1."""
    faults = Faults()
    for step in steps:
        faults.spike(factor, step=step - 1)
    return faults


def finite(net: Any) -> bool:
    return all(bool(value.isfinite().all()) for value in net.state_dict().values())


OPTIMIZERS = {
    "adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.01),
    "fused adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.01, fused=True),
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.01, momentum=0.9, weight_decay=0.1),
    "rmsprop": lambda parameters: torch.optim.RMSprop(parameters, lr=0.01),
}


@pytest.mark.parametrize("scaled", [False, True], ids=["32 bits", "scaled"])
@pytest.mark.parametrize("factor", [NAN, SPIKE], ids=["nan", "spike"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_ill_step_is_skipped_and_leaves_no_trace(name: str, factor: float, scaled: bool, tmp_path: Path):
    kind = type("Kind", (Classifier,), {"optimizer": staticmethod(OPTIMIZERS[name])})
    guard, states = DivergenceGuard("skip"), States()
    options: dict[str, Any] = {}
    if scaled:
        options["plugins"] = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=8.0))
    fit = fit_with(tmp_path, guard, at(50, factor=factor), states, kind=kind, **options)
    assert repr(states.after[50]) == repr(states.after[49])
    assert repr(states.after[51]) != repr(states.after[49])
    assert fit.global_step == STEPS
    assert guard.skipped == (0 if scaled and factor is NAN else 1)  # that one the scaler refuses by itself
    assert guard.rollbacks == 0


@BOTH
@pytest.mark.parametrize("action", ["skip", "rollback"])
def test_either_action_skips_what_it_can(action: Any, lightning: Any, tmp_path: Path):
    guard = DivergenceGuard(action)
    fit = fit_with(tmp_path, guard, at(20), lightning=lightning)
    assert (guard.skipped, guard.rollbacks) == (1, 0)
    assert finite(fit.lightning_module)


def test_all_batches_of_an_accumulated_step_go_together(tmp_path: Path):
    guard, states = DivergenceGuard("skip"), States()
    faults = Faults().spike(NAN, step=9)  # the first of the four batches of the tenth step
    fit_with(tmp_path, guard, faults, states, accumulate_grad_batches=4)
    assert repr(states.after[10]) == repr(states.after[9])
    assert guard.skipped == 1


def test_a_loss_is_judged_as_the_sum_over_an_accumulated_step(tmp_path: Path):
    guard = DivergenceGuard("skip")
    fit_with(tmp_path, guard, Faults(), accumulate_grad_batches=2)
    (state,) = guard.state_dict()["detectors"].values()
    assert len(state["series"]["loss"]["values"]) == STEPS // 2
    assert state["series"]["loss"]["values"][0] == pytest.approx(math.log(2), rel=0.5)


def test_an_illness_that_goes_on_is_gone_back_from(tmp_path: Path):
    guard, states = DivergenceGuard(), States()
    with pytest.warns(match=r"step 45: the weights are again those of step 32, the data goes on$"):
        fit = fit_with(tmp_path, guard, at(43, 44, 45), states)
    assert (guard.skipped, guard.rollbacks) == (3, 1)
    assert finite(fit.lightning_module)
    assert steps_in(tmp_path)[-1] == STEPS
    saved = CheckpointRecovery(tmp_path).store.checkpoints()
    assert {each.step for each in saved} <= {56, 64}


def test_the_state_that_it_goes_back_to_is_saved_at_once(tmp_path: Path):
    states = States()
    faults = at(43, 44, 45).fail(at="batch begins", step=45)
    with pytest.raises(RuntimeError, match="a fault ordered"):
        fit_with(tmp_path, DivergenceGuard(), faults, states)
    latest = CheckpointRecovery(tmp_path).latest()
    content = torch.load(str(latest), weights_only=True)
    assert content["global_step"] == 45
    weights, _ = states.after[32]
    assert all(torch.equal(content["state_dict"][name], value) for name, value in weights.items())


class RateSpike(pl.Callback):
    """The learning rate of one step is a thousand times what it should be: weights are ruined by healthy numbers."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: Any, *args: Any) -> None:
        for group in trainer.optimizers[0].param_groups:
            group["lr"] = 100.0 if trainer.global_step == self.step - 1 else 0.01


def test_weights_that_were_ruined_before_it_showed_are_gone_back_from(tmp_path: Path):
    guard, states = DivergenceGuard(), States()
    fit = fit_with(tmp_path, guard, Faults(), RateSpike(48), states)  # a checkpoint of that very step is committed
    assert guard.rollbacks == 1
    assert {49, 50, 51} <= states.after.keys()
    (weights, _), (ruined, _), (now, _) = states.after[32], states.after[48], states.after[STEPS]
    largest = [max(float(each["net.3.weight"].abs().max()) for each in [state]) for state in (weights, ruined, now)]
    assert largest[1] > 50 * largest[0]
    assert largest[2] < 2 * largest[0]
    assert fit.global_step == STEPS


@pytest.mark.parametrize("every", [4, 10])
def test_looking_seldom_it_finds_out_afterwards_and_goes_back(every: int, tmp_path: Path):
    guard = DivergenceGuard(every_n_steps=every)
    fit = fit_with(tmp_path, guard, at(42))
    assert (guard.skipped, guard.rollbacks) == (0, 1)
    assert finite(fit.lightning_module)
    assert fit.global_step == STEPS


def test_no_ill_state_is_validated(tmp_path: Path):
    rows = Rows()
    fit = fit_with(
        tmp_path,
        DivergenceGuard(every_n_steps=10),
        at(47),
        kind=Validated,
        logger=rows,
        val_check_interval=16,
        log_every_n_steps=1,
    )
    losses = [row["val/loss"] for _, row in rows.rows if "val/loss" in row]
    assert len(losses) == 4
    assert all(map(math.isfinite, losses))
    assert finite(fit.lightning_module)


def test_no_ill_state_is_saved_and_none_is_the_last(tmp_path: Path):
    for step in (45, 48, STEPS):  # between looks, at a checkpoint, and the last
        folder = tmp_path / str(step)
        guard = DivergenceGuard(every_n_steps=10)
        fit = fit_with(folder, guard, Faults(), RateSpike(step - 1))
        assert finite(fit.lightning_module)
        for each in CheckpointRecovery(folder).store.checkpoints():
            weights = torch.load(each.path, weights_only=True)["state_dict"]
            assert weights["net.3.weight"].abs().max() < 10
        assert guard.rollbacks == 1


def test_a_score_of_the_weights_that_were_left_is_not_that_of_the_ones_gone_back_to(tmp_path: Path):
    recovery = CheckpointRecovery(tmp_path, every_n_steps=100, monitor="val/loss", asynchronous=False)

    class Late(DivergenceGuard):
        """Finds out right after a validation."""

        def on_validation_start(self, *args: Any) -> None: ...

    fit = trainer(callbacks=[at(16), Late(every_n_steps=16), recovery], val_check_interval=16)
    fit.fit(module(kind=Validated), resumable(data()), data())
    scores = {each.step: each.score for each in recovery.store.checkpoints()}
    assert scores.get(16) is None


def test_stop_ends_the_training_before_the_ill_step(tmp_path: Path):
    states = States()
    with pytest.raises(
        DivergedError, match=r"training diverges at step 42: the (loss|gradient norm) is nan: "
    ) as ended:
        fit_with(tmp_path, DivergenceGuard("stop"), at(42), states)
    assert ended.value.exit_code == 76
    assert steps_in(tmp_path)[-1] == 40
    assert max(states.after) == 41


def test_falling_ill_too_often_ends_the_training(tmp_path: Path):
    with pytest.raises(DivergedError, match=r"step 30: .* is nan, the 3\. time within 1000 steps, where budget is 2"):
        fit_with(tmp_path, DivergenceGuard("skip", budget=2), at(10, 20, 21, 22, 30))


def test_falling_ill_now_and_then_does_not(tmp_path: Path):
    guard = DivergenceGuard("skip", budget=2, budget_steps=15)
    assert fit_with(tmp_path, guard, at(10, 20, 30, 40, 50)).global_step == STEPS
    assert guard.skipped == 5


def test_skipping_that_does_not_help_ends_the_training(tmp_path: Path):
    with pytest.raises(DivergedError, match=r"step 39: .* is nan, the 10\. such step in a row"):
        fit_with(tmp_path, DivergenceGuard("skip"), at(*range(30, 60)))


def test_where_there_is_nothing_good_to_go_back_to_it_ends(tmp_path: Path):
    class Ruins(pl.Callback):
        def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
            if trainer.global_step == 44:
                for file in tmp_path.glob("*.ckpt"):
                    flip_bit(file)

    with pytest.raises(
        DivergedError, match="diverges since step 43, and there is no good checkpoint to go back to in "
    ):
        fit_with(tmp_path, DivergenceGuard(), at(43, 44, 45), Ruins())


def test_what_it_went_back_behind_is_set_aside(tmp_path: Path):
    """Else retention would keep it in the place of what is healthy."""
    guard = DivergenceGuard()
    with pytest.raises(RuntimeError, match="a fault ordered"):
        fit_with(tmp_path, guard, at(43, 44, 45).fail(at="batch begins", step=46), every=10)
    assert steps_in(tmp_path) == [30, 45]
    assert [file.name for file in (tmp_path / "quarantine").glob("*.ckpt")] == ["000005-step-40.ckpt"]
    assert guard.state_dict()["proven"] == [45]


@pytest.mark.parametrize("scaler", [None, False])
@pytest.mark.parametrize("options", [{"gradient_clip_val": 1.0, "gradient_clip_algorithm": "value"}, {}])
def test_hooks_and_clipping_see_the_gradient_before_it_is_skipped(options: Any, scaler: Any, tmp_path: Path):
    class Looks(Classifier):
        optimizer = staticmethod(OPTIMIZERS["adamw" if options else "fused adamw"])  # which Lightning does not clip

        def on_before_optimizer_step(self, optimizer: Any) -> None:
            assert all(weight.grad is not None for weight in self.net.parameters())

    if scaler is False:  # there, and of no effect
        options = {**options, "plugins": MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", enabled=False))}
    guard, states = DivergenceGuard("skip"), States()
    fit_with(tmp_path, guard, at(50), states, kind=Looks, **options)
    assert guard.skipped == 1
    assert repr(states.after[50]) == repr(states.after[49])


def test_spikes_that_pass_do_not_count_and_what_is_not_finite_does(tmp_path: Path):
    guard = DivergenceGuard(budget=1)
    fit = fit_with(tmp_path, guard, at(40, 44, 48, 52, factor=SPIKE))
    assert (guard.skipped, guard.rollbacks, fit.global_step) == (4, 0, STEPS)


def test_a_loss_that_is_larger_for_good_is_taken_for_what_it_is(tmp_path: Path):
    guard = DivergenceGuard(window=32)
    fit = fit_with(tmp_path, guard, at(*range(40, 400), factor=50.0), max_epochs=3)
    assert fit.global_step == 3 * STEPS
    assert 1 <= guard.rollbacks <= 3


def test_another_model_begins_with_nothing_remembered():
    guard = DivergenceGuard("skip")
    fit = trainer(callbacks=[at(20), guard])
    fit.fit(module(kind=Classifier), data())
    fit.fit_loop.max_epochs = 2
    fit.fit(module(kind=Classifier), data())
    assert guard.skipped == 0


def test_lbfgs_is_left_alone(tmp_path: Path):
    kind = type("Kind", (Classifier,), {"optimizer": staticmethod(torch.optim.LBFGS)})
    with pytest.warns(match="DivergenceGuard leaves LBFGS alone"):
        fit_with(tmp_path, DivergenceGuard(), Faults(), kind=kind)


class NotSaved(Classifier):
    """A running mean of the loss that no checkpoint holds."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(0.0), persistent=False)  # type: ignore[attr-defined]

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = super().training_step(batch, batch_idx)
        self.mean.mul_(0.9).add_(0.1 * loss.detach())
        return loss + 0 * self.mean


def test_a_buffer_that_no_checkpoint_holds_does_not_stay_broken(tmp_path: Path):
    guard = DivergenceGuard(every_n_steps=10)
    fit = fit_with(tmp_path, guard, at(42), kind=NotSaved)
    assert guard.rollbacks == 1
    assert fit.lightning_module.mean.isfinite()


def test_the_learning_rate_stays_lower(tmp_path: Path):
    guard = DivergenceGuard(lr_factor=0.5)
    fit = fit_with(tmp_path, guard, at(20, 21, 22, 40, 41, 42))
    assert guard.state_dict()["lr_factor"] == 0.25
    assert fit.optimizers[0].param_groups[0]["lr"] == 0.01  # a scheduler's own
    again = DivergenceGuard(lr_factor=0.5)
    fit_with(tmp_path, again, Faults(), max_epochs=2)
    assert again.state_dict()["lr_factor"] == 0.25


def test_overflows_that_a_scaler_copes_with_are_no_illness(tmp_path: Path):
    guard = DivergenceGuard("stop")
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**30)
    fit = fit_with(tmp_path, guard, Faults(), plugins=MixedPrecision("16-mixed", "cpu", scaler))
    assert fit.global_step == STEPS
    assert scaler.get_scale() < 2.0**25
    assert guard.skipped == 0


def test_a_scaler_that_refuses_step_after_step_copes_no_longer(tmp_path: Path):
    scaler = torch.amp.GradScaler("cpu")
    with pytest.raises(DivergedError, match=f"diverges at step {10 + OVERFLOWS}: "):
        fit_with(
            tmp_path,
            DivergenceGuard("stop"),
            at(*range(11, 60)),
            plugins=MixedPrecision("16-mixed", "cpu", scaler),
        )


def test_what_it_did_is_logged(tmp_path: Path):
    rows = Rows()
    fit_with(tmp_path, DivergenceGuard(), at(20, 43, 44, 45), logger=rows)
    told = [(step, row) for step, row in rows.rows if "divergence/skipped_steps" in row]
    assert [step for step, _ in told] == [19, 42, 43, 44]
    assert told[-1][1] == {
        "divergence/skipped_steps": 4.0, "divergence/rollbacks": 1.0, "divergence/lr_factor": 1.0, "epoch": 0.0,
    }  # fmt: skip


class TwoOptimizers(Classifier):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.other = nn.Linear(4, 2)

    def training_step(self, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
        inputs, factor, target = batch
        for net, optimizer in zip((self.net, self.other), self.optimizers(), strict=True):  # type: ignore[attr-defined]
            scale = factor[:, :1] if net is self.other else 1.0
            optimizer.zero_grad()
            self.manual_backward(nn.functional.cross_entropy(net(inputs.nan_to_num()) * scale, target))  # type: ignore[attr-defined]
            optimizer.step()

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(net.parameters(), lr=0.1) for net in (self.net, self.other)]


def test_in_manual_optimization_the_step_of_one_optimizer_is_skipped(tmp_path: Path):
    guard, states = DivergenceGuard("skip"), States()
    fit_with(tmp_path, guard, at(41), states, kind=TwoOptimizers)
    assert guard.skipped == 1
    assert torch.equal(states.after[42][0]["other.weight"], states.after[40][0]["other.weight"])
    assert not torch.equal(states.after[42][0]["net.3.bias"], states.after[40][0]["net.3.bias"])


def test_where_nothing_can_be_seen_it_says_so(tmp_path: Path):
    with pytest.warns(match="DivergenceGuard sees nothing here"):
        fit_with(tmp_path, DivergenceGuard(every_n_steps=10), Faults(), kind=TwoOptimizers)


def test_going_back_takes_a_recovery_and_skipping_does_not():
    with pytest.raises(NotResumableError, match="DivergenceGuard goes back to what a CheckpointRecovery saved"):
        trainer(callbacks=[DivergenceGuard()]).fit(module(kind=Classifier), data())
    guard = DivergenceGuard("skip")
    trainer(callbacks=[at(20), guard]).fit(module(kind=Classifier), data())
    assert guard.skipped == 1


def test_a_strategy_that_spreads_gradients_over_the_ranks_is_refused():
    class FSDPStrategy(pl.strategies.SingleDeviceStrategy): ...

    with pytest.raises(NotResumableError, match="needs the whole gradient on every rank, and FSDPStrategy does not"):
        trainer(callbacks=[DivergenceGuard("skip")], strategy=FSDPStrategy(torch.device("cpu"))).fit(
            module(kind=Classifier), data()
        )


def test_a_new_training_begins_with_nothing_remembered():
    guard = DivergenceGuard("skip")
    for _ in range(2):
        trainer(callbacks=[at(20), guard]).fit(module(kind=Classifier), data())
        assert guard.skipped == 1


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"action": "retry"}, "action is 'retry'"),
        ({"every_n_steps": 0}, "every_n_steps is 0"),
        ({"action": "skip", "every_n_steps": 2}, "can only be skipped where it is 1"),
        ({"lr_factor": 0.0}, "lr_factor is 0.0"),
        ({"lr_factor": 1.1}, "lr_factor is 1.1"),
        ({"budget": -1}, "budget is -1"),
        ({"budget_steps": 0}, "budget is 5 in 0 steps"),
        ({"window": 31}, "window 31"),
        ({"deviations": 0.0}, "deviations is 0"),
    ],
)
def test_a_value_out_of_its_range_is_refused(arguments: dict[str, Any], sentence: str):
    with pytest.raises(ValueError, match=sentence):
        DivergenceGuard(**arguments)
