"""A training that was interrupted knows of its units what one knows that was not."""

from __future__ import annotations

import json
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from stormproof import CheckpointRecovery, DeadNeuronDetector, resumable
from tests.stormproof.units.unit_fits import (
    OnStep,
    TrainingModule,
    ValidatedModule,
    make_detector,
    make_inputs,
    make_loader,
    mlp,
    set_unit_weights,
)
from tests.support.cases import slow_except
from tests.support.small_fits import LIGHTNING_WARNING_FILTERS, make_trainer

pytestmark = LIGHTNING_WARNING_FILTERS
STEPS = 10  # in two epochs, each of which is validated after two of its steps, and four


class BothHeads(nn.Module):
    """A module, and a function."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = mlp(6, 5, 4), nn.Linear(4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(functional.relu(self.first(x)))


def kill_unit(unit: int) -> Any:
    return lambda module: set_unit_weights(module.net.first[0], unit, bias=-100)


def run(
    dead: DeadNeuronDetector, *after: pl.Callback, ckpt_path: Any = None, net: Any = None, **options: Any
) -> DeadNeuronDetector:
    """Units die after the third step and the seventh."""
    torch.manual_seed(0)
    train = DataLoader(TensorDataset(make_inputs(18, 6)), batch_size=4, shuffle=True)
    pl_trainer = make_trainer(
        callbacks=[OnStep(3, kill_unit(0)), OnStep(7, kill_unit(1)), dead, *after],
        **{"max_epochs": 2, "val_check_interval": 2, **options},
    )
    module = ValidatedModule(net or BothHeads(), torch.optim.Adam)
    pl_trainer.fit(
        module, resumable(train, seed=1), resumable(make_loader(make_inputs(7, 6)), seed=1), ckpt_path=ckpt_path
    )
    assert pl_trainer.global_step == STEPS
    return dead


class Save(pl.Callback):
    def __init__(self, path: Path, step: int) -> None:
        self.path, self.step = path, step

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


@pytest.fixture(scope="module")
def uninterrupted() -> dict[int, Any]:
    return {every: run(make_detector(every_n_steps=every)).state_dict() for every in (1, 3)}


@pytest.mark.parametrize(("step", "every"), [(1, 1), (3, 3), (5, 1), (6, 3), (8, 1)])
def test_from_a_checkpoint_of_lightning_in_the_middle_of_an_epoch(
    step: int, every: int, uninterrupted: dict[int, Any], tmp_path: Path
):
    """Where no validation is due: Lightning would lose it."""
    run(make_detector(every_n_steps=every), Save(tmp_path / "x.ckpt", step))
    resumed = run(make_detector(every_n_steps=every), ckpt_path=tmp_path / "x.ckpt")
    assert resumed.state_dict() == uninterrupted[every]


@pytest.mark.parametrize(
    ("step", "every"),
    slow_except([(1, 3), (2, 1), (3, 3), (4, 3), (5, 1), (7, 3), (8, 1)], [(2, 1), (4, 3)]),
)
def test_with_checkpoint_recovery_at_any_step(step: int, every: int, uninterrupted: dict[int, Any], tmp_path: Path):
    def stop(module: Any) -> None:
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        run(
            make_detector(every_n_steps=every),
            CheckpointRecovery(tmp_path, every_n_train_steps=1),
            OnStep(step + 1, stop),
        )
    recovery = CheckpointRecovery(tmp_path, every_n_train_steps=1)
    resumed = run(make_detector(every_n_steps=every), recovery, ckpt_path=recovery.latest_checkpoint())
    assert resumed.state_dict() == uninterrupted[every]


def test_a_sanity_check_where_a_training_is_resumed_shows_nothing_that_another_would_not_see(tmp_path: Path):
    """Lightning has one between two epochs, and after the last."""
    dead = make_detector(every_n_steps=1)
    expected = run(dead, CheckpointRecovery(tmp_path / "first"), num_sanity_val_steps=1)
    shutil.copytree(tmp_path / "first", tmp_path / "copy")  # this process refuses another fit in the first
    recovery = CheckpointRecovery(tmp_path / "copy")
    resumed = run(
        make_detector(every_n_steps=1), recovery, ckpt_path=recovery.latest_checkpoint(), num_sanity_val_steps=1
    )
    assert resumed.state_dict() == expected.state_dict()


def test_a_batch_of_one_is_compared_with_the_one_before_the_checkpoint(tmp_path: Path):
    def fit(dead: DeadNeuronDetector, *after: pl.Callback, ckpt_path: Any = None) -> Any:
        torch.manual_seed(0)
        loader = resumable(make_loader(make_inputs(4, 6), size=1), seed=1)
        make_trainer(callbacks=[dead, *after]).fit(TrainingModule(BothHeads()), loader, ckpt_path=ckpt_path)
        return dead.state_dict()

    expected = fit(make_detector(every_n_steps=1), Save(tmp_path / "x.ckpt", 3))
    assert max(expected["unit_records"]["records"][0]["alive_at"]) == 3
    assert fit(make_detector(every_n_steps=1), ckpt_path=tmp_path / "x.ckpt") == expected


def test_what_it_knew_of_an_earlier_pass_is_known_before_the_next(tmp_path: Path):
    class Note(pl.Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            activities.append({name: units.tolist() for name, units in dead.dead_units.items()})

    activities: list[Any] = []
    first = run(dead := make_detector(), Save(tmp_path / "x.ckpt", 5), Note())
    expected = activities[5]
    assert set(expected) == {"net.first.1", "net.last"}
    activities.clear()
    dead = make_detector()
    run(dead, Note(), ckpt_path=tmp_path / "x.ckpt")
    assert activities[0] == expected
    assert dead.dead_counts == first.dead_counts


@pytest.mark.slow
def test_a_compiled_network_is_not_traced_again_and_loses_nothing(
    tmp_path: Path, uninterrupted: dict[int, Any], recwarn: pytest.WarningsRecorder
):
    """There is no sanity check when a training is resumed."""

    def compiled() -> Any:
        torch._dynamo.reset()
        return torch.compile(BothHeads(), backend="eager", fullgraph=True)

    def kill(unit: int) -> Any:
        return lambda module: set_unit_weights(module.net._orig_mod.first[0], unit, bias=-100)

    class Kill(pl.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            if trainer.global_step == 4:
                kill_unit(2)(pl_module)

    def fit(dead: DeadNeuronDetector, *after: pl.Callback, ckpt_path: Any = None) -> Any:
        torch.manual_seed(0)
        pl_trainer = make_trainer(callbacks=[Kill(), dead, *after], max_epochs=2, num_sanity_val_steps=1)
        module = ValidatedModule(compiled())
        loader = resumable(make_loader(make_inputs(16, 6)), seed=1)
        pl_trainer.fit(module, loader, make_loader(make_inputs(8, 6)), ckpt_path=ckpt_path)
        return dead

    expected = fit(make_detector(every_n_steps=1), Save(tmp_path / "x.ckpt", 3))
    resumed = fit(make_detector(every_n_steps=1), ckpt_path=tmp_path / "x.ckpt")
    assert set(resumed.dead_units) == {"net.first.1", "net.last"}
    assert resumed.state_dict() == expected.state_dict()
    assert not [record for record in recwarn if "compiled" in str(record.message)]


@pytest.mark.slow
@pytest.mark.parametrize("compiled", [True, False])
def test_an_epoch_at_which_it_did_not_look_is_no_reason_to_complain(
    compiled: bool, tmp_path: Path, recwarn: pytest.WarningsRecorder
):
    """Neither of the steps after the resume is the tenth."""
    torch._dynamo.reset()
    for epochs, ckpt_path in ((1, None), (2, tmp_path / "x.ckpt")):
        net = torch.compile(BothHeads(), backend="eager", fullgraph=True) if compiled else BothHeads()
        pl_trainer = make_trainer(callbacks=[make_detector(), Save(tmp_path / "x.ckpt", 2)], max_epochs=epochs)
        with pytest.warns(UserWarning, match="there was no sanity check") if compiled else nullcontext():
            pl_trainer.fit(TrainingModule(net), resumable(make_loader(make_inputs(8, 6))), ckpt_path=ckpt_path)
    assert not [record for record in recwarn if "was not called" in str(record.message)]


def test_a_network_that_lost_a_layer_loses_what_was_known_of_it(tmp_path: Path):
    dead = make_detector()
    pl_trainer = make_trainer(callbacks=[dead, Save(tmp_path / "x.ckpt", 2)])
    pl_trainer.fit(ValidatedModule(mlp(6, 4, 4, 1)), make_loader(make_inputs(8, 6)), make_loader(make_inputs(7, 6)))
    checkpoint = torch.load(tmp_path / "x.ckpt", weights_only=True)
    json.dumps(checkpoint["callbacks"]["DeadNeuronDetector"])
    state = checkpoint["callbacks"]["DeadNeuronDetector"]
    new_detector = make_detector()
    new_detector.load_state_dict(state)
    make_trainer(callbacks=[new_detector]).validate(
        ValidatedModule(mlp(6, 4, 1)), make_loader(make_inputs(7, 6)), verbose=False
    )
    assert len(new_detector.dead_units["net.1"]) == 4
