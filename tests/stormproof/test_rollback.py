"""A training set back to a checkpoint in its place, while its data and its schedules go on."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EMAWeightAveraging
from pytorch_lightning.plugins import MixedPrecision
from small_fits import BOTH, LIGHTNINGS_OWN, OTHER, loader, module, trainer
from torch import nn

from stormproof import CheckpointRecovery, resumable, rollback
from stormproof.checkpoint import Store
from stormproof.errors import StorageError
from stormproof.testing import flip_bit

pytestmark = LIGHTNINGS_OWN


def folder_with(path: Path, steps: list[int]) -> CheckpointRecovery:
    store = Store(path)
    attempt = store.begin_attempt(store.resolve())
    for step in steps:
        store.commit(lambda file: torch.save({}, file), step=step, epoch=0, world_size=1, attempt=attempt)
    return CheckpointRecovery(path, keep_last=3)


def chosen(recovery: CheckpointRecovery, ill_since: int, proven: Any = ()) -> int | None:
    found = rollback.choose(recovery, ill_since, proven)
    return None if found is None else found.step


def test_the_newest_checkpoint_is_chosen_that_was_healthy_for_some_steps_more(tmp_path: Path):
    recovery = folder_with(tmp_path, [10, 20, 30])
    assert [chosen(recovery, since) for since in (45, 40, 39, 30, 29, 20)] == [30, 30, 20, 20, 10, 10]


def test_one_that_should_be_deleted_already_is_not_chosen(tmp_path: Path):
    """What a kill left of an attempt must not decide."""
    folder_with(tmp_path, [10, 20, 30])
    assert chosen(CheckpointRecovery(tmp_path, keep_last=2), 20) == 20


def test_where_none_was_the_oldest_is(tmp_path: Path):
    assert chosen(folder_with(tmp_path, [10, 20, 30]), 15) == 10


def test_one_that_holds_trusted_weights_is_trusted_at_once(tmp_path: Path):
    assert chosen(folder_with(tmp_path, [10, 20, 30]), 31, proven=[30]) == 30


def test_one_that_was_adopted_is_not_chosen(tmp_path: Path):
    recovery = folder_with(tmp_path, [10, 20])
    recovery.store.commit(lambda file: torch.save({}, file), step=30, epoch=0, world_size=0, attempt=0, adopted=True)
    assert chosen(recovery, 100) == 20


def test_a_damaged_one_is_walked_past(tmp_path: Path):
    recovery = folder_with(tmp_path, [10, 20, 30])
    flip_bit(recovery.store.checkpoints()[-1].path)
    assert chosen(recovery, 100) == 20
    for each in recovery.store.checkpoints()[:2]:
        flip_bit(each.path)
    assert chosen(recovery, 100) is None


def test_one_that_cannot_be_read_is_an_error_that_names_it(tmp_path: Path):
    with pytest.raises(StorageError, match=r"rank 0 cannot go back to a checkpoint: .*gone\.ckpt: No such file"):
        rollback.read(str(tmp_path / "gone.ckpt"))


class Learner:
    """Batch norm, a cycled momentum, and random numbers in each step."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Dropout(0.2), nn.Linear(4, 1))

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        return self.net(batch + torch.randn_like(batch)).square().mean()

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.net.parameters(), lr=0.1)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=100)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


def learnt(fit: Any, net: Any, average: Any) -> dict[str, Any]:
    return copy.deepcopy(
        {
            "weights": net.state_dict(),
            "average": average._average_model.state_dict(),  # Lightning has no other name for it
            "optimizer": fit.optimizers[0].state_dict()["state"],
            "scaler": fit.precision_plugin.state_dict(),
        }
    )


def counted(fit: Any) -> dict[str, Any]:
    groups = fit.optimizers[0].state_dict()["param_groups"]
    return copy.deepcopy(
        {
            "step": fit.global_step,
            "rates": [(group["lr"], group["betas"]) for group in groups],
            "schedule": fit.lr_scheduler_configs[0].scheduler.state_dict(),
            "random": torch.get_rng_state(),
            "loops": fit.fit_loop.state_dict()["epoch_loop.batch_progress"],
        }
    )


@BOTH
def test_what_was_learnt_goes_back_and_what_counts_steps_goes_on(lightning: Any, tmp_path: Path):
    theirs = OTHER if lightning is OTHER else pl
    average = theirs.callbacks.EMAWeightAveraging(decay=0.9) if lightning is OTHER else EMAWeightAveraging(decay=0.9)
    plugin = theirs.plugins.MixedPrecision if lightning is OTHER else MixedPrecision
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=3)
    recovery = CheckpointRecovery(tmp_path, every_n_steps=100, asynchronous=False)
    net = module(lightning, Learner)
    at: dict[str, Any] = {}

    class Watches(lightning.Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            recovery.call_at_steps(self.at_step)

        def at_step(self, fit: Any, _: Any) -> None:
            if fit.global_step == 5:
                recovery.commit(fit, net)
                at["saved"] = learnt(fit, net, average)
            if fit.global_step == 9:
                before, at["ahead"] = counted(fit), learnt(fit, net, average)
                found = rollback.choose(recovery, 100, ())
                assert found is not None
                rollback.set_back(fit, net, rollback.read(str(found.path)))
                at["back"] = learnt(fit, net, average)
                assert repr(counted(fit)) == repr(before)

    fit = trainer(
        lightning, callbacks=[average, Watches(), recovery], max_epochs=2, plugins=plugin("16-mixed", "cpu", scaler)
    )
    fit.fit(net, resumable(loader()))
    assert fit.global_step == 12
    assert repr(at["back"]) == repr(at["saved"])
    for part in at["saved"]:
        assert repr(at["back"][part]) != repr(at["ahead"][part]), f"{part} had not changed in between"


def test_it_may_be_done_within_a_validation_and_training_goes_on(tmp_path: Path):
    """There torch keeps no account of gradients."""
    recovery = CheckpointRecovery(tmp_path, every_n_steps=2, asynchronous=False)

    class Back(pl.Callback):
        def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
            found = rollback.choose(recovery, 100, ())
            assert found is not None
            assert not torch.is_grad_enabled()
            rollback.set_back(trainer, pl_module, rollback.read(str(found.path)))

    class Validated(Learner):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.net(batch)

    fit = trainer(callbacks=[Back(), recovery], val_check_interval=3)
    fit.fit(module(kind=Validated), resumable(loader()), loader(2))
    assert fit.global_step == 6
