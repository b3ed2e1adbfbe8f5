import os
import shutil
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.demos.boring_classes import BoringModel

from stormproof.checkpoint import Lease, Store, lease
from stormproof.checkpoint.adoption import adopt
from stormproof.errors import FolderTakenError, NotResumableError
from tests.support.checkpoint_files import commit_checkpoint, file_names, make_state, make_store


def _save_stock(path: Path, **changes: Any) -> Path:
    torch.save({**make_state(600), "epoch": 3, **changes}, path)
    return path


def test_a_stock_checkpoint_is_taken_over_as_the_newest_and_stays(tmp_path: Path):
    store = make_store(tmp_path)
    source = _save_stock(tmp_path / "last.ckpt")
    content = source.read_bytes()
    result = adopt(source)
    assert (result.path.name, result.step, result.epoch) == ("000004-step-600.ckpt", 600, 3)
    assert (result.adopted, result.attempt, result.world_size, result.finite) == (True, 0, 0, True)
    assert source.read_bytes() == result.path.read_bytes() == content
    resolution = store.resolve(verify_all=True)
    assert resolution.chosen_checkpoint == result
    assert list(resolution.foreign_files) == ["last.ckpt"]
    assert not Lease.is_active(tmp_path)
    assert commit_checkpoint(store, 610).name == "000005-step-610"


def test_it_goes_into_another_folder_that_is_made(tmp_path: Path):
    result = adopt(_save_stock(tmp_path / "last.ckpt"), tmp_path / "new" / "checkpoints")
    assert Store(tmp_path / "new" / "checkpoints").latest_checkpoint() == result
    assert file_names(tmp_path) == {"last.ckpt", "new"}


class _Crafted:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.folder),)


def _torn(path: Path) -> None:
    _save_stock(path)
    os.truncate(path, path.stat().st_size // 2)


BAD_CHECKPOINTS = {
    "nothing": (lambda path: None, "is not a file"),
    "a folder": (Path.mkdir, "is not a file"),
    "empty": (lambda path: path.write_bytes(b""), "not a complete zip archive"),
    "torn": (_torn, "not a complete zip archive"),
    "another type": (lambda path: _save_stock(path, extra=Fraction(1, 2)),
              "it contains fractions.Fraction, which is code"),
    "a crafted pickle": (lambda path: _save_stock(path, extra=_Crafted(path.parent / "made")), "mkdir, which is code"),
    "a list": (lambda path: torch.save([1], path), "it has no keys"),
    "weights alone": (lambda path: torch.save({"weight": torch.ones(1)}, path), "it has no state_dict"),
    "no step": (lambda path: torch.save({"state_dict": {}, "epoch": 0}, path), "it has no global_step"),
    "a step below 0": (lambda path: _save_stock(path, global_step=-1), "it has no global_step"),
    "a step that is true": (lambda path: _save_stock(path, global_step=True), "it has no global_step"),
    "no epoch": (lambda path: _save_stock(path, epoch=None), "it has no epoch"),
    "other optimizers": (lambda path: _save_stock(path, optimizer_states=[{"a": 1}]), "states have another structure"),
    "not finite": (
        lambda path: _save_stock(path, state_dict={"w": torch.tensor([float("nan")])}), "state_dict/w is not finite"
    ),
}  # fmt: skip


@pytest.mark.parametrize(("make", "reason"), BAD_CHECKPOINTS.values(), ids=BAD_CHECKPOINTS.keys())
def test_what_cannot_be_resumed_from_is_a_sentence_and_changes_nothing(make: Any, reason: str, tmp_path: Path):
    source = tmp_path / "source" / "file.ckpt"
    source.parent.mkdir()
    make(source)
    before = file_names(source.parent)
    with pytest.raises(NotResumableError, match=reason) as error:
        adopt(source, tmp_path / "checkpoints")
    assert str(source) in str(error.value)
    assert "\n" not in str(error.value)
    assert file_names(tmp_path) == {"source"}
    assert file_names(source.parent) == before


def test_one_of_ours_needs_no_adoption(tmp_path: Path):
    newest = make_store(tmp_path).read_checkpoints()[-1]
    with pytest.raises(NotResumableError, match="already has a manifest"):
        adopt(newest.path)


def test_one_of_ours_that_lost_its_manifest_is_taken_over_under_a_new_name(tmp_path: Path):
    newest = make_store(tmp_path / "old").read_checkpoints()[-1]
    source = Path(shutil.copy(newest.path, tmp_path))
    assert adopt(source).path.name == "000004-step-30.ckpt"
    assert source.exists()


def test_a_folder_in_use_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source = _save_stock(tmp_path / "last.ckpt")
    folder_lease = Lease(tmp_path)
    try:
        with pytest.raises(FolderTakenError, match="is in use by process"):
            adopt(source)
    finally:
        folder_lease.release()
    assert not list(tmp_path.glob("*-step-*"))
    monkeypatch.setattr(lease.Lease, "check", _print_loss)
    with pytest.raises(FolderTakenError, match="taken over meanwhile"):
        adopt(source)
    assert not list(tmp_path.glob("*-step-*"))


def _print_loss(self: Lease) -> None:
    raise FolderTakenError("taken over meanwhile")


@pytest.mark.filterwarnings("ignore")  # Lightning's, of what the little model does not have
def test_lightnings_own_file_is_adopted_and_lightning_goes_on_from_it(tmp_path: Path):
    def trainer(steps: int) -> pl.Trainer:
        return pl.Trainer(
            default_root_dir=tmp_path, max_steps=steps, accelerator="cpu", logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0,
        )  # fmt: skip

    first = trainer(3)
    first.fit(BoringModel())
    first.save_checkpoint(tmp_path / "last.ckpt")
    result = adopt(tmp_path / "last.ckpt", tmp_path / "checkpoints")
    assert (result.step, result.epoch) == (3, first.current_epoch)
    second = trainer(5)
    second.fit(BoringModel(), ckpt_path=str(result.path))
    assert second.global_step == 5
