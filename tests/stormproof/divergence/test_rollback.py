"""A training set back to a checkpoint in its place, while its data and its schedules go on."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EMAWeightAveraging
from pytorch_lightning.plugins import MixedPrecision
from torch import nn

from stormproof import CheckpointRecovery, resumable
from stormproof.checkpoint import Checkpoint, CommitInfo, Store
from stormproof.checkpoint.tiers.memory_copier import MemoryCopier
from stormproof.divergence import rollback
from stormproof.errors import DivergedError, StorageError
from stormproof.lightning.find_callback import find_callback
from stormproof.testing import flip_bit
from tests.support.small_fits import (
    BOTH_PACKAGES,
    LIGHTNING_PYTORCH,
    LIGHTNING_WARNING_FILTERS,
    make_loader,
    make_module,
    make_trainer,
)

pytestmark = LIGHTNING_WARNING_FILTERS


def checkpoints(folder: Path, steps: list[int], **fields: Any) -> list[Checkpoint]:
    store = Store(folder)
    attempt = store.begin_attempt(store.resolve())
    for step in steps:
        info = CommitInfo(step=step, epoch=0, world_size=1, **fields)
        store.commit(lambda file: torch.save({}, file), info, attempt=attempt)
    return store.read_checkpoints()


def rollback_order(checkpoint_list: list[Checkpoint], since: int, proven: Any = ()) -> list[int]:
    return [checkpoint.step for checkpoint in rollback.order_by_trust(checkpoint_list, since, proven)]


@pytest.mark.parametrize(
    ("since", "expected"),
    [
        (45, [30, 20, 10]),
        (40, [30, 20, 10]),
        (39, [20, 10, 30]),
        (30, [20, 10, 30]),
        (29, [10, 20, 30]),
        (15, [10, 20, 30]),
    ],
)
def test_first_comes_the_newest_that_was_healthy_for_ten_steps_more_then_the_oldest_of_the_others(
    since: int, expected: list[int], tmp_path: Path
):
    assert rollback_order(checkpoints(tmp_path, [10, 20, 30]), since) == expected


def test_one_that_holds_trusted_weights_is_trusted_at_once(tmp_path: Path):
    assert rollback_order(checkpoints(tmp_path, [10, 20, 30]), 31, proven=[30]) == [30, 20, 10]


@pytest.mark.parametrize("fields", [{"adopted": True}, {"finite": False}])
def test_one_that_lacks_what_is_set_back_is_none(fields: dict[str, Any], tmp_path: Path):
    checkpoint_list = [*checkpoints(tmp_path / "ours", [10, 20]), *checkpoints(tmp_path / "others", [30], **fields)]
    assert rollback_order(checkpoint_list, 100) == [20, 10]


def roll_back(trainer: Any, module: Any, recovery: CheckpointRecovery, since: int) -> dict[str, Any]:
    other_callbacks = [callback for callback in trainer.callbacks if callback is not recovery]
    coordinator = recovery.save_coordinator
    return rollback.roll_back(trainer, module, recovery.store, coordinator, other_callbacks, since, trusted_steps=())


class RollbackCallback(pl.Callback):
    """Goes back at a step, after ``first`` was called."""

    def __init__(self, step: int, first: Any) -> None:
        self.step, self.first = step, first
        self.restored_entry: dict[str, Any] | None = None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        recovery = find_callback(trainer, CheckpointRecovery)
        assert recovery is not None
        recovery.call_at_steps(lambda *_: self._at_step(trainer, pl_module, recovery))

    def _at_step(self, trainer: Any, module: Any, recovery: CheckpointRecovery) -> None:
        if trainer.global_step == self.step:
            self.first()
            self.restored_entry = roll_back(trainer, module, recovery, since=12)


def fit_with_rollback(
    folder: Path, first: Any, *, asynchronous: bool = False, memory_tier: bool = False
) -> RollbackCallback:
    back = RollbackCallback(12, first)
    recovery = CheckpointRecovery(
        folder, every_n_train_steps=4, keep_last=3, async_save=asynchronous, memory_tier=memory_tier
    )
    make_trainer(callbacks=[back, recovery], max_epochs=3).fit(make_module(), resumable(make_loader()))
    return back


def test_a_damaged_one_is_walked_past_and_the_newer_ones_are_set_aside(tmp_path: Path):
    """Of 0, 4, 8 and 12 retention keeps the last three; of these none is old enough, and the oldest is damaged."""
    back = fit_with_rollback(tmp_path, lambda: flip_bit(tmp_path / "000002-step-4.ckpt"))
    assert back.restored_entry is not None
    assert back.restored_entry["global_step"] == 8
    assert sorted(file.name for file in (tmp_path / "quarantine").glob("*.ckpt")) == ["000004-step-12.ckpt"]


def test_where_none_is_good_training_ends_with_code_76(tmp_path: Path):
    def flip_all() -> None:
        for file in tmp_path.glob("*.ckpt"):
            flip_bit(file)

    with pytest.raises(DivergedError, match="no good checkpoint to roll back to in ") as ended:
        fit_with_rollback(tmp_path, flip_all)
    assert ended.value.exit_code == 76


@pytest.mark.parametrize("error", [OSError("the server is away"), RuntimeError("half a file")])
def test_a_rank_that_cannot_read_it_ends_all_with_code_74(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def fail(*_: Any, **__: Any) -> None:
        raise error

    with pytest.raises(
        StorageError, match=f"rank 0 cannot read the checkpoint for a rollback: .*-step-4.ckpt: {error}"
    ):
        fit_with_rollback(tmp_path, lambda: monkeypatch.setattr(rollback, "torch", SimpleNamespace(load=fail)))


def test_what_cannot_be_set_aside_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: Any, **__: Any) -> None:
        raise OSError("no space")

    with pytest.warns(match="could not be moved to quarantine/: no space"):
        back = fit_with_rollback(tmp_path, lambda: monkeypatch.setattr(Store, "quarantine", fail))
    assert back.restored_entry is not None


def test_copies_in_memory_that_cannot_be_deleted_end_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(_: Any) -> None:
        raise OSError(5, "the other node did not reply")

    monkeypatch.setattr(MemoryCopier, "clear", fail)
    with pytest.warns(match="may resume from diverged weights: the other node did not reply"):
        back = fit_with_rollback(tmp_path, lambda: None, memory_tier=True)
    assert back.restored_entry is not None
    assert sorted(file.name for file in (tmp_path / "quarantine").glob("*.ckpt")) == [
        "000003-step-8.ckpt", "000004-step-12.ckpt",
    ]  # fmt: skip


def test_a_write_that_had_failed_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """It was waited for there, and nobody else would learn of it."""
    commit = Store.commit

    def commit_unless_12(self: Store, write: Any, info: CommitInfo, **options: Any) -> Checkpoint:
        if info.step == 12:
            raise OSError("no space")
        return commit(self, write, info, **options)

    monkeypatch.setattr(Store, "commit", commit_unless_12)
    with pytest.warns(match="The checkpoint of step 12 was not saved: no space"):
        back = fit_with_rollback(tmp_path, lambda: None, asynchronous=True)
    assert back.restored_entry is not None
    assert back.restored_entry["global_step"] == 0


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


def learned_state(fit: Any, net: Any, average: Any) -> dict[str, Any]:
    return copy.deepcopy(
        {
            "weights": net.state_dict(),
            "average": average._average_model.state_dict(),  # Lightning has no other name for it
            "optimizer": fit.optimizers[0].state_dict()["state"],
            "scaler": fit.precision_plugin.state_dict(),
        }
    )


def count_calls(fit: Any) -> dict[str, Any]:
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


@BOTH_PACKAGES
def test_what_was_learnt_goes_back_and_what_counts_steps_goes_on(lightning: Any, tmp_path: Path):
    other_lightning = LIGHTNING_PYTORCH if lightning is LIGHTNING_PYTORCH else pl
    average = (
        other_lightning.callbacks.EMAWeightAveraging(decay=0.9)
        if lightning is LIGHTNING_PYTORCH
        else EMAWeightAveraging(decay=0.9)
    )
    plugin = other_lightning.plugins.MixedPrecision if lightning is LIGHTNING_PYTORCH else MixedPrecision
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=3)
    recovery = CheckpointRecovery(tmp_path, every_n_train_steps=100, async_save=False)
    net = make_module(lightning, Learner)
    at: dict[str, Any] = {}

    class Watches(lightning.Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            recovery.call_at_steps(self.at_step)

        def at_step(self, fit: Any, _: Any) -> None:
            if fit.global_step == 5:
                recovery.commit(fit, net)
                at["saved"] = learned_state(fit, net, average)
            if fit.global_step == 9:
                before, at["ahead"] = count_calls(fit), learned_state(fit, net, average)
                (*_, newest) = recovery.store.read_checkpoints()
                rollback.restore_state(fit, net, torch.load(newest.path, weights_only=True), [average])
                at["back"] = learned_state(fit, net, average)
                assert repr(count_calls(fit)) == repr(before)

    fit = make_trainer(
        lightning, callbacks=[average, Watches(), recovery], max_epochs=2, plugins=plugin("16-mixed", "cpu", scaler)
    )
    fit.fit(net, resumable(make_loader()))
    assert fit.global_step == 12
    assert repr(at["back"]) == repr(at["saved"])
    for part in at["saved"]:
        assert repr(at["back"][part]) != repr(at["ahead"][part]), f"{part} had not changed in between"


def test_it_may_be_done_within_a_validation_and_training_goes_on(tmp_path: Path):
    """There torch keeps no account of gradients."""
    recovery = CheckpointRecovery(tmp_path, every_n_train_steps=2, async_save=False)

    class Back(pl.Callback):
        def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
            assert not torch.is_grad_enabled()
            roll_back(trainer, pl_module, recovery, since=100)

    class Validated(Learner):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.net(batch)

    fit = make_trainer(callbacks=[Back(), recovery], val_check_interval=3)
    fit.fit(make_module(kind=Validated), resumable(make_loader()), make_loader(2))
    assert fit.global_step == 6
