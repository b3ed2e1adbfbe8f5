"""What is one pass, when a unit died, and what is said of a sample."""

from __future__ import annotations

from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

from tests.stormproof.units.unit_fits import (
    ABOVE,
    BELOW,
    OnStep,
    SignedUnits,
    TrainingModule,
    ValidatedModule,
    count_forward_hooks,
    fit,
    make_detector,
    make_inputs,
    make_linear,
    make_loader,
    mlp,
    set_unit_weights,
    zero_lr_optimizer,
)
from tests.support.small_fits import LIGHTNING_WARNING_FILTERS, RowsLogger, make_trainer

pytestmark = LIGHTNING_WARNING_FILTERS


def test_a_unit_that_is_alive_in_one_batch_is_alive():
    result = fit(SignedUnits(), ABOVE, torch.cat([ABOVE, BELOW]), optimizer=zero_lr_optimizer)
    assert result["net.act"] == [False, False, True]


def test_only_what_the_pass_sees_counts():
    result = fit(SignedUnits(), ABOVE, torch.cat([ABOVE, BELOW]), optimizer=zero_lr_optimizer, limit_val_batches=1)
    assert result["net.act"] == [False, True, True]
    assert result.dead.activity["net.act"].inputs == 4


def test_all_loaders_of_a_validation_are_one_pass():
    dead = make_detector()
    module = ValidatedModule(SignedUnits(), zero_lr_optimizer)
    make_trainer(callbacks=[dead]).fit(module, make_loader(ABOVE), [make_loader(ABOVE), make_loader(BELOW)])
    assert dead.dead_units["net.act"].tolist() == [False, False, True]
    assert dead.activity["net.act"].inputs == 8


def test_the_sanity_check_is_no_pass_but_a_sign_of_life():
    def kill(module: Any) -> None:
        set_unit_weights(module.net.a, slice(None), bias=-100)

    train = torch.zeros(8, 1) + 1  # on which nothing moves
    result = fit(
        SignedUnits(),
        train,
        ABOVE,
        OnStep(1, kill),
        optimizer=zero_lr_optimizer,
        num_sanity_val_steps=1,
        dead=make_detector(every_n_steps=1),
    )
    assert result.dead.dead_counts == {"net.act": [(2, 3)]}
    activity = result.dead.activity["net.act"]
    assert (activity.dead_from_start, activity.since_step) == (
        2,
        0,
    )  # unit 0 was alive, the others are not known to have been
    lonely = fit(
        SignedUnits(), train, ABOVE, OnStep(1, kill), optimizer=zero_lr_optimizer, dead=make_detector(every_n_steps=1)
    )
    assert lonely.dead.activity["net.act"].dead_from_start == 3


def test_a_validation_that_is_interrupted_is_not_published():
    class Interrupted(ValidatedModule):
        def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            super().validation_step(batch, batch_idx)
            if self.trainer.global_step == 4:
                set_unit_weights(self.net.a, slice(None), bias=100, weight=0)
                raise RuntimeError("out of memory")

    dead, module = make_detector(), Interrupted(SignedUnits(), zero_lr_optimizer)
    pl_trainer = make_trainer(callbacks=[dead], max_epochs=3)
    with pytest.raises(RuntimeError, match="out of memory"):
        pl_trainer.fit(module, make_loader(torch.cat([ABOVE, BELOW])), make_loader(ABOVE))
    assert dead.dead_counts == {"net.act": [(2, 2)]}
    assert dead.dead_units["net.act"].tolist() == [False, True, True]


def test_a_validation_in_the_middle_of_an_epoch_leaves_the_epochs_sample_whole():
    result = fit(
        SignedUnits(),
        torch.cat([ABOVE, ABOVE, BELOW, ABOVE]),
        ABOVE,
        optimizer=zero_lr_optimizer,
        val_check_interval=2,
        dead=make_detector(every_n_steps=1),
    )
    assert result.dead.dead_counts == {"net.act": [(2, 2), (4, 2)]}
    assert result.dead.activity["net.act"].step == 4
    rows = RowsLogger()
    fit(
        SignedUnits(),
        torch.cat([ABOVE, ABOVE, BELOW, ABOVE]),
        ABOVE,
        optimizer=zero_lr_optimizer,
        val_check_interval=2,
        logger=rows,
    )
    silent = [row["units/silent_fraction/net.act"] for _, row in rows.rows if "units/silent_fraction/net.act" in row]
    assert silent == [pytest.approx(2 / 3)]  # of the first batch alone


def test_without_a_validation_a_sample_is_told_with_its_bound():
    result = fit(SignedUnits(), torch.cat([ABOVE, BELOW, BELOW]), optimizer=zero_lr_optimizer)
    activity = result.dead.activity["net.act"]
    assert result.dead.dead_units == {}
    assert (activity.exact, activity.inputs, activity.dead, activity.bound) == (False, 4, 2, 3 / 4)


@pytest.mark.parametrize(("inputs_", "bound"), [(2, 1.0), (3, 1.0), (8, 3 / 8)])
def test_the_bound_is_three_by_the_inputs_and_a_share(inputs_: int, bound: float):
    result = fit(
        SignedUnits(), ABOVE.repeat(2, 1)[:inputs_], optimizer=zero_lr_optimizer, dead=make_detector(every_n_steps=1)
    )
    assert result.dead.activity["net.act"].bound == bound


def test_a_sample_of_every_step_leaves_nothing_of_the_epoch_out():
    train = torch.cat([ABOVE, ABOVE, BELOW[:1]])
    result = fit(SignedUnits(), train, optimizer=zero_lr_optimizer, dead=make_detector(every_n_steps=1), max_epochs=2)
    activity = result.dead.activity["net.act"]
    assert (activity.exact, activity.inputs, activity.dead) == (False, 9, 1)
    assert result.dead.dead_counts == {"net.act": [(3, 1), (6, 1)]}


@pytest.mark.parametrize(("every", "looked"), [(1, 12), (2, 7), (3, 5), (5, 3), (12, 2), (50, 1)])
def test_it_looks_at_the_first_step_and_at_each_multiple(every: int, looked: int):
    result = fit(
        SignedUnits(), ABOVE.repeat(12, 1), optimizer=zero_lr_optimizer, dead=make_detector(every_n_steps=every)
    )
    assert result.dead.activity["net.act"].inputs == 4 * looked


def test_all_batches_of_an_accumulated_step_are_looked_at():
    result = fit(
        SignedUnits(),
        ABOVE.repeat(12, 1),
        optimizer=zero_lr_optimizer,
        dead=make_detector(every_n_steps=3),
        accumulate_grad_batches=2,
    )
    assert result.dead.activity["net.act"].inputs == 4 * 2 * 3  # of steps 1, 3 and 6


def test_two_optimizers_do_not_step_over_the_multiples():
    class Both(TrainingModule):
        automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            for optimizer in self.optimizers():  # type: ignore[union-attr]
                optimizer.zero_grad()
                self.manual_backward(self.net(batch[0]).square().mean())
                optimizer.step()

        def configure_optimizers(self) -> Any:
            return [zero_lr_optimizer(self.net.a.parameters()), zero_lr_optimizer(self.net.out.parameters())]

    module: Any = Both(SignedUnits())
    module.automatic_optimization = False
    result = fit(module, ABOVE.repeat(30, 1), dead=make_detector(every_n_steps=10))
    assert result.trainer.global_step == 60
    assert result.dead.activity["net.act"].inputs == 4 * 6  # the first, and one for each multiple of ten below 60


def test_a_validation_by_itself_is_a_pass():
    dead, module = make_detector(), ValidatedModule(SignedUnits())
    make_trainer(callbacks=[dead]).validate(module, make_loader(ABOVE), verbose=False)
    assert dead.dead_units["net.act"].tolist() == [False, True, True]
    assert dead.activity["net.act"].exact
    assert not count_forward_hooks(module)


def test_of_one_validation_nothing_is_left_in_the_next():
    dead, module = make_detector(), ValidatedModule(SignedUnits())
    for data, expected in ((torch.cat([ABOVE, BELOW]), [False, False, True]), (ABOVE, [False, True, True])):
        make_trainer(callbacks=[dead]).validate(module, make_loader(data), verbose=False)
        assert dead.dead_units["net.act"].tolist() == expected


# When it died


@pytest.mark.parametrize(("every", "since"), [(1, 3), (2, 2), (10, 1)])
def test_death_in_training_is_told_from_death_at_initialization(every: int, since: int):
    net = mlp(6, 4, 1)
    set_unit_weights(net[0], 0, bias=-100)
    result = fit(
        net,
        make_inputs(16, 6),
        make_inputs(7, 6),
        OnStep(3, lambda module: set_unit_weights(module.net[0], 2, bias=-100)),
        optimizer=zero_lr_optimizer,
        dead=make_detector(every_n_steps=every),
    )
    activity = result.dead.activity["net.1"]
    assert (activity.dead, activity.dead_from_start, activity.since_step) == (2, 1, 0)
    alone = fit(
        mlp(6, 4, 1),
        make_inputs(16, 6),
        make_inputs(7, 6),
        OnStep(3, lambda module: set_unit_weights(module.net[0], 2, bias=-100)),
        optimizer=zero_lr_optimizer,
        dead=make_detector(every_n_steps=every),
    )
    activity = alone.dead.activity["net.1"]
    assert (activity.dead, activity.dead_from_start, activity.since_step) == (1, 0, since)


def test_the_running_epoch_distinguishes_units_that_died_in_training():
    net, detector = mlp(6, 4, 1), make_detector(every_n_steps=1)
    set_unit_weights(net[0], 0, bias=-100)
    observed: list[Any] = []
    kill = OnStep(1, lambda module: set_unit_weights(module.net[0], 2, bias=-100))
    observe = OnStep(7, lambda _: observed.append(detector.running_activity["net.1"]))
    fit(net, make_inputs(16, 6), None, kill, observe, optimizer=zero_lr_optimizer, dead=detector, max_epochs=2)
    (activity,) = observed
    assert (activity.dead, activity.dead_from_start, activity.since_step) == (2, 1, 0)


def test_a_unit_that_a_pass_finds_alive_was_alive_then():
    """Though in each of its batches, and in training, it kept to one value."""
    still_ = torch.ones(8, 1)
    val = torch.cat([torch.ones(4, 1), -torch.ones(4, 1)])
    kill = OnStep(3, lambda module: set_unit_weights(module.net.a, slice(None), bias=-100))
    result = fit(SignedUnits(), still_, val, kill, optimizer=zero_lr_optimizer, max_epochs=2)
    activity = result.dead.activity["net.act"]
    assert result.dead.dead_counts["net.act"] == [(2, 1), (4, 3)]
    assert (activity.dead_from_start, activity.since_step) == (1, 0)
    alone = fit(
        mlp(1, 1, 1),
        still_,
        val,
        OnStep(3, lambda module: set_unit_weights(module.net[0], 0, bias=-100)),
        optimizer=zero_lr_optimizer,
        max_epochs=2,
    )
    assert alone.dead.dead_counts["net.1"] == [(2, 0), (4, 1)]
    assert (alone.dead.activity["net.1"].dead_from_start, alone.dead.activity["net.1"].since_step) == (0, 3)


def test_batches_of_one_input_show_life_one_beside_the_other():
    dead, module = make_detector(every_n_steps=1), ValidatedModule(mlp(6, 4, 1), zero_lr_optimizer)
    set_unit_weights(module.net[0], 0, bias=-100)
    kill = OnStep(5, lambda module: set_unit_weights(module.net[0], 2, bias=-100))
    pl_trainer = make_trainer(callbacks=[kill, dead])
    pl_trainer.fit(module, make_loader(make_inputs(8, 6), 1), make_loader(make_inputs(7, 6), 1))
    activity = dead.activity["net.1"]
    assert (activity.dead, activity.dead_from_start) == (2, 1)


def test_the_dead_become_more_stay_or_become_fewer():
    steps = [
        OnStep(4, lambda module: set_unit_weights(module.net[0], slice(0, 2), bias=-100)),
        OnStep(8, lambda module: set_unit_weights(module.net[0], 0, bias=1)),
    ]
    trends, net = [], mlp(6, 4, 1)

    class Note(pl.Callback):
        def on_train_epoch_end(self, trainer: Any, *_: Any) -> None:
            trends.append(dead.activity["net.1"].trend)

    dead = make_detector()
    fit(net, make_inputs(8, 6), make_inputs(7, 6), *steps, Note(), dead=dead, optimizer=zero_lr_optimizer, max_epochs=5)
    assert dead.dead_counts["net.1"] == [(2, 0), (4, 2), (6, 2), (8, 1), (10, 1)]
    assert trends == ["stable", "rising", "stable", "falling", "stable"]


@pytest.mark.slow
def test_sparsity_is_no_death():
    torch.manual_seed(0)
    net = mlp(8, 64, 1)
    with torch.no_grad():
        net[0].weight /= net[0].weight.norm(dim=1, keepdim=True)  # type: ignore[operator]
        net[0].bias.fill_(-1.555)  # type: ignore[operator]  # a normal number is above it in 6 of 100 cases
    result = fit(
        net,
        make_inputs(1280, 8),
        make_inputs(1024, 8, seed=1),
        optimizer=zero_lr_optimizer,
        dead=make_detector(every_n_steps=1),
    )
    activity = result.dead.activity["net.1"]  # zeros were counted in every tenth batch
    assert activity.dead == 0
    assert activity.sparsity == pytest.approx(0.94, abs=0.02)


def test_sparsity_is_the_share_of_zeros_in_the_last_epoch():
    kill = OnStep(2, lambda module: set_unit_weights(module.net.a, slice(None), bias=-100))
    result = fit(
        SignedUnits(),
        torch.cat([ABOVE, BELOW]),
        ABOVE,
        kill,
        optimizer=zero_lr_optimizer,
        dead=make_detector(every_n_steps=1),
        max_epochs=2,
    )
    assert result.dead.activity["net.act"].sparsity == 1
    result = fit(
        SignedUnits(),
        torch.cat([ABOVE, BELOW]),
        ABOVE,
        optimizer=zero_lr_optimizer,
        dead=make_detector(every_n_steps=1),
    )
    assert result.dead.activity["net.act"].sparsity == pytest.approx(2 / 3)


def test_a_second_training_with_one_callback_begins_anew():
    dead = make_detector(every_n_steps=1)
    fit(mlp(6, 4, 1), make_inputs(8, 6), dead=dead)
    net = mlp(6, 4, 1)
    set_unit_weights(net[0], 0, bias=-100)
    second = fit(net, make_inputs(12, 6), dead=dead)
    activity = second.dead.activity["net.1"]
    assert (activity.inputs, activity.dead, activity.dead_from_start, activity.since_step) == (12, 1, 1, 0)
    assert second.dead.dead_counts == {"net.1": [(3, 1)]}
    second_fit = fit(
        nn.Sequential(make_linear(3), nn.Tanh(), make_linear(1, 3)), make_inputs(8, 6), make_inputs(7, 6), dead=dead
    )
    assert len(second_fit["net.1"]) == 3


def test_a_training_that_goes_on_goes_on():
    dead, module = make_detector(), ValidatedModule(mlp(6, 4, 1), zero_lr_optimizer)
    set_unit_weights(module.net[0], 0, bias=-100)
    running = make_trainer(callbacks=[dead])
    for epochs in (1, 2):
        running.fit_loop.max_epochs = epochs
        running.fit(module, make_loader(make_inputs(8, 6)), make_loader(make_inputs(7, 6)))
    assert dead.dead_counts == {"net.1": [(2, 1), (4, 1)]}
    assert dead.activity["net.1"].dead_from_start == 1


@pytest.mark.parametrize(("samples", "logged"), [(1, False), (2, True)])
def test_a_pass_of_one_input_logs_no_share_of_dead_units(samples: int, logged: bool):
    rows = RowsLogger()
    few = torch.cat([ABOVE, BELOW])[:samples]
    fit(SignedUnits(), few, few, optimizer=zero_lr_optimizer, logger=rows, dead=make_detector(every_n_steps=1))
    shares = {name for _, row in rows.rows for name in row if name.startswith(("units/dead", "units/silent"))}
    assert bool(shares) == logged


def test_what_it_found_is_logged():
    rows = RowsLogger()
    result = fit(
        SignedUnits(),
        torch.cat([ABOVE, BELOW]),
        ABOVE,
        optimizer=zero_lr_optimizer,
        logger=rows,
        dead=make_detector(every_n_steps=1),
    )
    logged = {name: value for _, row in rows.rows for name, value in row.items() if name.startswith("units/")}
    assert logged == {
        "units/dead_fraction": pytest.approx(2 / 3),
        "units/dead_fraction/net.act": pytest.approx(2 / 3),
        "units/silent_fraction/net.act": pytest.approx(1 / 3),
        "units/sparsity/net.act": pytest.approx(2 / 3),
    }
    assert result.dead.activity["net.act"].exact
