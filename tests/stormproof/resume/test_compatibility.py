import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelPruning
from pytorch_lightning.utilities import CombinedLoader
from torch.utils.data import DataLoader

from stormproof import CheckpointRecovery, resumable
from stormproof.errors import NotResumableError
from stormproof.lightning.layout import Layout
from stormproof.resume import compatibility
from stormproof.resume.compatibility import check_data_parallelism, check_loop, check_strategy, find_resume_caveats
from tests.support.small_fits import (
    LIGHTNING_WARNING_FILTERS,
    IndexDataset,
    IndexStream,
    RegressionModule,
    make_loader,
    make_module,
    make_trainer,
)

pytestmark = LIGHTNING_WARNING_FILTERS


SHARDED = Layout(is_replicated=False, is_sharded=True)


@pytest.mark.parametrize("layout", [Layout(), SHARDED, replace(SHARDED, saves_shards=True)])
def test_replicated_and_sharded_parameters_are_supported(layout: Layout):
    check_strategy(make_trainer(), layout, "the test needs it")


@pytest.mark.parametrize("name", ["FSDPStrategy", "DeepSpeedStrategy"])
def test_a_strategy_that_spreads_the_state_is_refused_by_name(name: str):
    trainer = cast("pl.Trainer", SimpleNamespace(strategy=type(name, (), {})(), global_rank=0, world_size=1))
    with pytest.raises(
        NotResumableError, match=rf"the test needs it, which {name} does not provide\. Use one of DDPStrategy"
    ):
        check_strategy(trainer, Layout.of(trainer), "the test needs it")


def test_a_data_order_of_an_earlier_device_mesh_is_refused(monkeypatch: pytest.MonkeyPatch):
    check_data_parallelism(Layout())
    monkeypatch.setattr(compatibility, "world_size", lambda: 2)  # two ranks that take the same samples
    with pytest.raises(NotResumableError, match=r"groups of 2 ranks, but tensor_parallel_size is 1, bec"):
        check_data_parallelism(Layout())


class _CaveatRecorder(pl.Callback):
    """Asks where the plugin asks: when training starts."""

    def __init__(self) -> None:
        self.doubts: list[str] = []

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        check_loop(trainer)
        self.doubts = find_resume_caveats(trainer)


def test_a_step_that_fetches_its_own_batches_is_refused():
    class _Fetching(RegressionModule):
        def training_step(self, dataloader_iter: Any) -> torch.Tensor:  # type: ignore[override]
            return super().training_step(next(dataloader_iter)[0], 0)

    with (
        pytest.warns(match="dataloader_iter"),
        pytest.raises(NotResumableError, match="Take a batch instead"),
    ):
        make_trainer(callbacks=[_CaveatRecorder()]).fit(make_module(kind=_Fetching), make_loader())


def _first_loader_batch(batch: Any) -> torch.Tensor:
    return batch if isinstance(batch, torch.Tensor) else next(item for item in batch.values() if item is not None)


class _AnyBatch(RegressionModule):
    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return super().training_step(_first_loader_batch(batch), batch_idx)


LOADERS: dict[str, tuple[Any, int]] = {
    "resumable": (lambda: resumable(make_loader()), 0),
    "plain": (make_loader, 1),
    "one of two": (lambda: {"a": resumable(make_loader()), "b": make_loader()}, 1),
    "both of two": (lambda: {"a": make_loader(), "b": make_loader()}, 2),
    "plain, shuffled": (lambda: make_loader(shuffle=True), 1),
}


@pytest.mark.parametrize(("make", "count"), LOADERS.values(), ids=LOADERS.keys())
def test_every_training_loader_that_cannot_resume_is_a_doubt(make: Any, count: int):
    asks = _CaveatRecorder()
    make_trainer(callbacks=[asks]).fit(make_module(kind=_AnyBatch), make())
    assert len(asks.doubts) == count
    assert all(DataLoader.__name__ in doubt and "resumable(loader)" in doubt for doubt in asks.doubts)


@pytest.mark.parametrize(("mode", "data", "doubted"), [
    ("max_size", IndexDataset, False), ("max_size", IndexStream, True), ("max_size_cycle", IndexStream, False),
])  # fmt: skip
def test_an_ended_loader_beside_one_of_no_known_length_is_a_doubt(mode: Any, data: type, doubted: bool):
    asks = _CaveatRecorder()
    both = CombinedLoader({"a": resumable(make_loader()), "b": resumable(DataLoader(data()))}, mode)
    make_trainer(callbacks=[asks]).fit(make_module(kind=_AnyBatch), both)
    assert any("max_size" in doubt and '"min_size"' in doubt for doubt in asks.doubts) is doubted


def test_a_callback_whose_state_is_not_all_saved_is_a_doubt():
    asks = _CaveatRecorder()
    pruning = ModelPruning("l1_unstructured", amount=0.5)
    make_trainer(callbacks=[asks, pruning], max_epochs=2).fit(make_module(), resumable(make_loader()))
    (caveat,) = asks.doubts
    assert caveat.startswith("ModelPruning ")


class CompiledModule(RegressionModule):
    """Trains on batches of two samples and validates on batches of three."""

    dynamic: bool | None = None

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.compile(self.layer, backend="eager", dynamic=self.dynamic)

    def validation_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        self.layer(batch)


class CompiledStaticModule(CompiledModule):
    dynamic = False


@pytest.mark.slow  # torch._dynamo is imported
@pytest.mark.parametrize(("kind", "count"), [(CompiledModule, 1), (CompiledStaticModule, 0)])
def test_shapes_that_compiled_code_makes_dynamic_are_reported_once(kind: type, count: int, tmp_path: Path):
    torch._dynamo.reset()
    trainer = make_trainer(callbacks=[CheckpointRecovery(tmp_path)], num_sanity_val_steps=1, max_steps=3)
    with warnings.catch_warnings(record=True) as records:
        warnings.simplefilter("always")
        trainer.fit(make_module(kind=kind), resumable(make_loader()), make_loader(batch_size=3))
    messages = [str(record.message) for record in records if "torch.compile" in str(record.message)]
    assert len(messages) == count
    assert all("made an input dynamic (tensor size=[?, 2]" in message for message in messages)
