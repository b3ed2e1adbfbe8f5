"""A file is mapped while its checkpoint is loaded, and no longer."""

import errno
import mmap
import os
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from lightning_fabric.plugins import TorchCheckpointIO
from pytorch_lightning.callbacks import EMAWeightAveraging
from pytorch_lightning.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.elastic.utils.distributed import get_free_port
from torch.distributed.fsdp import fully_shard
from torchmetrics import MeanMetric

from stormproof import CheckpointRecovery, resumable
from stormproof.resume import mapped_loading
from tests.support.ranks import call_on_two_ranks, join_two_ranks
from tests.support.small_fits import LIGHTNING_WARNING_FILTERS, make_loader, make_trainer

pytestmark = LIGHTNING_WARNING_FILTERS


def _count_maps() -> int:
    """Returns the number of mapped checkpoint files of this process."""
    return Path("/proc/self/maps").read_text().count(".ckpt")


class ModuleWithKeptEntries(pl.LightningModule):
    """Keeps what it loads, except parameters and buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1)
        self.register_buffer("scale", torch.ones(3))
        self.mean = MeanMetric()
        self.mean.persistent(True)
        self.extra_state, self.hook_state = torch.ones(4), torch.ones(5)
        self.maps_in_hook: list[int] = []

    def get_extra_state(self) -> torch.Tensor:
        return self.extra_state

    def set_extra_state(self, state: torch.Tensor) -> None:
        self.extra_state = state

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["hook"] = self.hook_state

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.hook_state = checkpoint["hook"]
        self.maps_in_hook.append(_count_maps())

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        loss = self.layer(batch).square().mean()
        self.mean(loss.detach())
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.layer.parameters(), lr=0.1)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]


class ShardedModule(ModuleWithKeptEntries):
    def configure_model(self) -> None:
        assert self.device_mesh is not None
        fully_shard(self.layer, mesh=self.device_mesh["data_parallel"])


class KeptState(pl.Callback):
    """Keeps its loaded state, and records the maps after the first batch."""

    def __init__(self) -> None:
        self.state, self.maps = torch.ones(6), [-1]

    def state_dict(self) -> dict[str, Any]:
        return {"state": self.state}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.state = state_dict["state"]

    def on_train_batch_end(self, trainer: Any, *_: Any, **__: Any) -> None:
        self.maps.append(_count_maps())


def _fit(
    folder: Path,
    max_steps: int,
    kind: type = ModuleWithKeptEntries,
    *,
    weights_only: bool | None = None,
    **options: Any,
) -> tuple[int, int]:
    """Trains and returns the number of maps while the checkpoint is loaded, and after the first batch."""
    recovery, module, kept = CheckpointRecovery(folder, every_n_train_steps=2), kind(), KeptState()
    callbacks = [recovery, kept, *options.pop("callbacks", [])]
    trainer = make_trainer(callbacks=callbacks, max_steps=max_steps, max_epochs=-1, **options)
    trainer.fit(module, resumable(make_loader()), ckpt_path=recovery.latest_checkpoint(), weights_only=weights_only)
    return max([0, *module.maps_in_hook]), kept.maps[1]


@pytest.mark.parametrize("callbacks", [[], [EMAWeightAveraging]])
def test_no_tensor_refers_to_the_file_after_a_restore(callbacks: list[Any], tmp_path: Path):
    assert _fit(tmp_path, 2, callbacks=[make() for make in callbacks]) == (0, 0)
    assert _fit(tmp_path, 4, callbacks=[make() for make in callbacks]) == (1, 0)


def test_a_validation_leaves_no_map(tmp_path: Path):
    _fit(tmp_path, 2)
    module, recovery = ModuleWithKeptEntries(), CheckpointRecovery(tmp_path)
    module.validation_step = lambda batch, batch_idx: module.layer(batch).sum()  # type: ignore[method-assign]
    trainer = make_trainer(callbacks=[recovery, KeptState()])
    trainer.validate(module, make_loader(), ckpt_path=recovery.latest_checkpoint())
    assert (module.maps_in_hook, _count_maps()) == ([1], 0)


class OwnCheckpointIO(TorchCheckpointIO):
    """A plugin of the user."""


@pytest.mark.parametrize("case", ["weights_only=False", "own CheckpointIO", "Linux before 5.14"])
def test_other_files_and_systems_are_loaded_as_by_lightning(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    _fit(tmp_path, 2)
    if case == "Linux before 5.14":
        monkeypatch.setattr(mapped_loading, "_can_populate", lambda: False)
    options: dict[str, Any] = {"plugins": [OwnCheckpointIO()]} if case == "own CheckpointIO" else {}
    assert _fit(tmp_path, 4, weights_only=False if case == "weights_only=False" else None, **options) == (0, 0)


def test_a_file_in_the_old_format_of_torch_is_not_mappable(tmp_path: Path):
    for name, is_zip in (("new.ckpt", True), ("old.ckpt", False)):
        torch.save({"step": 1}, tmp_path / name, _use_new_zipfile_serialization=is_zip)
        assert mapped_loading.is_mappable(tmp_path / name) == is_zip
    assert not mapped_loading.is_mappable(tmp_path / "missing.ckpt")


def test_a_truncated_file_raises_an_error_instead_of_sigbus(tmp_path: Path):
    path = tmp_path / "x.ckpt"
    path.write_bytes(bytes(1 << 20))
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as pages:
        os.truncate(path, 1 << 16)
        with pytest.raises(OSError, match=rf"\[Errno {errno.EIO}\] Input/output error: '{path}'"):
            mapped_loading._populate(pages, path)


def test_a_file_that_cannot_be_mapped_raises_an_oserror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    torch.save({"state_dict": {}}, tmp_path / "x.ckpt")

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("unable to mmap 4096 bytes from file <x.ckpt>: Cannot allocate memory (12)")

    monkeypatch.setattr(torch, "load", fail)
    with pytest.raises(OSError, match="Cannot allocate memory"):
        mapped_loading.load_mapped(tmp_path / "x.ckpt", nn.Linear(1, 1), copies_optimizer_states=True)


def test_a_read_error_is_retried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    _fit(tmp_path, 2)
    read_pages, failures = mapped_loading._read_pages, [OSError(errno.EIO, os.strerror(errno.EIO))]

    def fail_once(path: Path) -> None:
        if failures:
            raise failures.pop()
        read_pages(path)

    monkeypatch.setattr(mapped_loading, "_read_pages", fail_once)
    assert _fit(tmp_path, 4) == (1, 0)
    assert failures == []


def test_a_change_of_a_mapped_tensor_does_not_reach_the_file(tmp_path: Path):
    path = tmp_path / "x.ckpt"
    torch.save({"state_dict": nn.Linear(2, 1).state_dict()}, path)
    content = path.read_bytes()
    with torch.serialization.set_default_mmap_options(mmap.MAP_SHARED):
        checkpoint = mapped_loading.load_mapped(path, nn.Linear(2, 1), copies_optimizer_states=True)
    checkpoint["state_dict"]["weight"].zero_()
    assert path.read_bytes() == content


def _fit_rank(rank: int, folder: str, port: int) -> None:
    join_two_ranks(rank, port)
    for max_steps, maps in ((2, (0, 0)), (4, (1, 0))):
        strategy = ModelParallelStrategy(2, 1, save_distributed_checkpoint=False)
        assert _fit(Path(folder), max_steps, ShardedModule, strategy=strategy, devices=2) == maps


@pytest.mark.slow
def test_no_shard_refers_to_the_file_after_a_restore(tmp_path: Path):
    call_on_two_ranks(_fit_rank, str(tmp_path), get_free_port())
