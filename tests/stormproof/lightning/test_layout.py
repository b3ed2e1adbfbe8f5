"""How the state is distributed over the ranks, and the names of Lightning's strategies that say so."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
from lightning_utilities.core.rank_zero import rank_zero_only
from torch import distributed
from torch.testing._internal.distributed.fake_pg import FakeStore

from stormproof import DeadNeuronDetector, TrainingHealth
from stormproof.errors import StormproofError
from stormproof.lightning.layout import Layout
from tests.support.small_fits import BOTH_PACKAGES, LIGHTNING_WARNING_FILTERS, make_loader, make_module, make_trainer

pytestmark = LIGHTNING_WARNING_FILTERS


class MyDDP(pl.strategies.DDPStrategy): ...


class ShardingDDP(pl.strategies.DDPStrategy):
    def lightning_module_state_dict(self) -> Any:
        return {}


class MyDeepSpeed(pl.strategies.DeepSpeedStrategy): ...


@BOTH_PACKAGES
@pytest.mark.parametrize("strategy", ["auto", "ddp"])
def test_one_device_and_ddp_replicate_the_state(strategy: str, lightning: Any):
    assert Layout.of(make_trainer(lightning, strategy=strategy)) == Layout()


@pytest.mark.parametrize(("strategy", "is_replicated"), [(MyDDP, True), (ShardingDDP, False), (MyDeepSpeed, False)])
def test_a_subclass_replicates_unless_it_overrides_how_state_is_saved(strategy: type, is_replicated: bool):
    instance = strategy.__new__(strategy)  # the package deepspeed is not installed
    trainer: Any = SimpleNamespace(strategy=instance, global_rank=0, world_size=1)
    assert Layout.of(trainer) == Layout(is_replicated=is_replicated)


@pytest.fixture
def _third_of_four_ranks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("LOCAL_RANK", "2")
    monkeypatch.setattr(rank_zero_only, "rank", 0)  # set by Lightning, and restored after the test
    distributed.init_process_group("fake", store=FakeStore(), rank=2, world_size=4)
    yield
    distributed.destroy_process_group()


@pytest.mark.usefixtures("_third_of_four_ranks")
@BOTH_PACKAGES
@pytest.mark.parametrize(("saves_shards", "size"), [(True, 1), (True, 2), (False, 4)])
def test_the_layout_of_a_sharded_model_is_fixed_before_setup(saves_shards: bool, size: int, lightning: Any):
    strategy = lightning.strategies.ModelParallelStrategy(4 // size, size, save_distributed_checkpoint=saves_shards)
    trainer = make_trainer(lightning, strategy=strategy, devices=4)
    with pytest.raises(RuntimeError, match="before processes have initialized"):
        Layout.of(trainer)
    strategy.connect(make_module(lightning))
    strategy.setup_environment()  # the trainer does so before it calls setup
    layout = Layout.of(trainer)
    assert layout == Layout(2, 4, size, is_replicated=False, is_sharded=True, saves_shards=saves_shards)
    assert (layout.data_rank, layout.data_parallel_size) == (2 // size, 4 // size)


@pytest.mark.parametrize("callback", [DeadNeuronDetector(), TrainingHealth()])
def test_callbacks_that_need_whole_layers_are_refused(callback: pl.Callback, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Layout, "of", lambda _: Layout(world_size=2, tensor_parallel_size=2))
    name = type(callback).__name__
    with pytest.raises(StormproofError, match=rf"^{name} requires .*, but 2 ranks split .*remove {name}"):
        make_trainer(callbacks=[callback]).fit(make_module(), make_loader())
