"""CheckpointRecovery(resume=True) resumes where a package calls ``fit`` without ``ckpt_path``."""

import os
import shutil
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import pytest
import torch
from torch.nn import SmoothL1Loss

from stormproof import CheckpointRecovery, resumable
from stormproof.errors import NoGoodCheckpointError, NotResumableError
from stormproof.testing import FaultInjector
from tests.support.recovery_fits import fit_with_recovery
from tests.support.small_fits import (
    BOTH_PACKAGES,
    LIGHTNING_WARNING_FILTERS,
    RegressionModule,
    make_loader,
    make_module,
    make_trainer,
)

pytestmark = LIGHTNING_WARNING_FILTERS


def fit(
    folder: Path,
    faults: FaultInjector | None = None,
    ckpt_path: str | None = None,
    kind: type = RegressionModule,
    **options: Any,
) -> Any:
    recovery = CheckpointRecovery(folder, every_n_train_steps=1, async_save=False, resume=True, **options)
    trained, fitting = make_module(kind=kind), make_trainer(callbacks=[recovery, *filter(None, [faults])])
    fitting.fit(trained, resumable(make_loader(shuffle=True), seed=1), ckpt_path=ckpt_path)
    return trained.layer.weight.detach(), fitting


class Adding(RegressionModule):
    """Adds an object that torch refuses, and needs it to resume."""

    loss: Any = SmoothL1Loss()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["loss_fn"] = self.loss

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.loss = checkpoint["loss_fn"]


def interrupt(folder: Path, **options: Any) -> None:
    with pytest.raises(RuntimeError, match="injected fault"):
        fit(folder, FaultInjector().fail(step=4), **options)


def test_an_interrupted_fit_resumes_exactly_without_ckpt_path(tmp_path: Path):
    expected, _ = fit(tmp_path / "whole")
    interrupt(tmp_path / "interrupted")
    resumed, fitting = fit(tmp_path / "interrupted")
    assert torch.equal(expected, resumed)
    assert fitting.ckpt_path.endswith(".ckpt")
    assert "resume_start" not in vars(fitting._checkpoint_connector)


class Crafted:
    """Unpickled, it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


@BOTH_PACKAGES
def test_a_checkpoint_is_not_unpickled_whatever_the_environment_says(
    lightning: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    folder, marker = tmp_path / "checkpoints", tmp_path / "made"
    fit_with_recovery(CheckpointRecovery(folder), lightning=lightning)
    recovery = CheckpointRecovery(folder)
    path = recovery.latest_checkpoint()
    assert path is not None
    torch.save({"hook": Crafted(marker)}, path)  # after it was verified
    with pytest.raises(UnpicklingError, match="mkdir"):
        make_trainer(lightning, callbacks=[recovery]).fit(
            make_module(lightning), resumable(make_loader()), ckpt_path=path
        )
    assert not marker.exists()


def test_a_given_ckpt_path_has_priority(tmp_path: Path):
    interrupt(tmp_path)
    checkpoint_path = str(min(tmp_path.glob("*.ckpt")))
    assert checkpoint_path != CheckpointRecovery(tmp_path).latest_checkpoint()
    assert fit(tmp_path, ckpt_path=checkpoint_path)[1].ckpt_path == checkpoint_path


@pytest.mark.filterwarnings("ignore:Pickled entries", "ignore:Checkpoints do not contain")
def test_pickled_entries_come_back_only_with_weights_only_false(tmp_path: Path):
    interrupt(tmp_path, kind=Adding)
    with pytest.raises(KeyError, match="loss_fn"):
        fit(tmp_path, kind=Adding)
    trained, _ = fit(tmp_path, kind=Adding, weights_only=False)
    assert trained.isfinite().all()


def test_a_second_fit_does_not_resume_a_finished_run(tmp_path: Path):
    fit(tmp_path)
    with pytest.raises(NotResumableError, match=r"contains a finished run of 6 steps\. Use another folder"):
        fit(tmp_path)


def test_a_fit_in_a_folder_that_was_emptied_begins_anew_and_resumes_again(tmp_path: Path):
    fit(tmp_path / "used")
    shutil.rmtree(tmp_path / "used")
    interrupt(tmp_path / "used")
    assert fit(tmp_path / "used")[1].ckpt_path is not None


@pytest.mark.filterwarnings("ignore:Skipping checkpoint")
def test_start_over_begins_beside_damaged_checkpoints(tmp_path: Path):
    interrupt(tmp_path)
    for file in tmp_path.glob("*.ckpt"):
        file.write_bytes(b"damaged")
    recovery = CheckpointRecovery(tmp_path, every_n_train_steps=1, resume=True)
    with pytest.raises(NoGoodCheckpointError):
        make_trainer(callbacks=[recovery]).fit(make_module(), resumable(make_loader()))
    assert recovery.latest_checkpoint(start_over=True) is None
    fitting = make_trainer(callbacks=[recovery])
    fitting.fit(make_module(), resumable(make_loader()))
    assert fitting.global_step == 6
