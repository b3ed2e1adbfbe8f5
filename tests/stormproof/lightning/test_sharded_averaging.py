"""The private names of Lightning's weight averaging callback, and the structure of an average of shards."""

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pytorch_lightning.callbacks import EMAWeightAveraging
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from stormproof.errors import NotResumableError
from stormproof.lightning import sharded_averaging
from stormproof.lightning.layout import Layout
from tests.support.small_fits import BOTH_PACKAGES

SHARDED = Layout(is_replicated=False, is_sharded=True, saves_shards=True)


def make_sharded_trainer(*callbacks: Any) -> Any:
    return SimpleNamespace(strategy=Strategy(), callbacks=[*callbacks])


class Strategy:
    def save_checkpoint(self, checkpoint: dict[str, Any], path: str) -> str:
        return path


@BOTH_PACKAGES
def test_lightning_still_has_the_names(lightning: Any):
    callback = lightning.callbacks.EMAWeightAveraging(device="cpu", use_buffers=False, decay=0.5)
    assert callback._average_model is None
    assert callback._device == torch.device("cpu")
    assert callback._use_buffers is False
    assert callback._kwargs.keys() == {"avg_fn"}
    trainer = make_sharded_trainer(callback)
    undo = sharded_averaging.prepare_averaging(trainer, SHARDED)
    names = {"setup", "_swap_models", "_copy_average_to_current"}
    assert names <= vars(callback).keys()
    callback.setup(trainer, nn.Linear(1, 1), "fit")
    assert callback._average_model is None
    undo()
    assert not names & vars(callback).keys()


@BOTH_PACKAGES
def test_lightning_still_swaps_and_copies_with_these_methods(lightning: Any):
    callback, module = lightning.callbacks.EMAWeightAveraging(), nn.Linear(1, 1)
    swaps, copies = [], []
    callback._average_model = torch.optim.swa_utils.AveragedModel(module)
    callback._swap_models, callback._copy_average_to_current = swaps.append, copies.append
    callback.on_validation_epoch_start(SimpleNamespace(), module)
    callback.on_validation_epoch_end(SimpleNamespace(), module)
    callback.on_train_end(SimpleNamespace(), module)
    assert (swaps, copies) == ([module, module], [module])


def test_an_average_of_other_strategies_is_left_to_lightning():
    callback = EMAWeightAveraging()
    sharded_averaging.prepare_averaging(SimpleNamespace(callbacks=[callback]), Layout())  # type: ignore[arg-type]
    assert "setup" not in vars(callback)


class EMAWithSetup(EMAWeightAveraging):
    def setup(self, *_: Any, **__: Any) -> None: ...


def test_an_overridden_setup_is_refused():
    with pytest.raises(NotResumableError, match="EMAWithSetup overrides setup, which is not called with sharded param"):
        sharded_averaging.prepare_averaging(make_sharded_trainer(EMAWithSetup()), SHARDED)


def test_lightnings_own_sharded_checkpoints_contain_only_the_average_with_a_warning():
    trainer = make_sharded_trainer(EMAWeightAveraging())
    sharded_averaging.prepare_averaging(trainer, SHARDED)
    checkpoint = {"state_dict": {"weight": 1}, "current_model_state": {"weight": 2}, "averaging_state": {}}
    with pytest.warns(
        UserWarning, match="contain only the averaged weights. Resume from the checkpoints of Checkpoint"
    ):
        assert trainer.strategy.save_checkpoint(checkpoint, "path") == "path"
    assert checkpoint == {"state_dict": {"weight": 1}}


class Tied(nn.Module):
    """It uses a layer twice, recomputes another, and has a buffer that is not saved."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.BatchNorm1d(2)
        self.second = self.first
        self.recomputed = checkpoint_wrapper(nn.Linear(2, 2))
        self.absent = None
        self.register_buffer("mask", torch.ones(1), persistent=False)
        self.register_parameter("bias", None)

    def get_extra_state(self) -> Any:
        return {"calls": 3}

    def set_extra_state(self, state: Any) -> None: ...


def test_an_average_has_the_tensors_of_the_module_in_the_same_order_but_no_code():
    module = Tied()
    average = sharded_averaging.ShardedAverage(module, saves_shards=True, use_buffers=True)
    for actual, expected in (
        (average.module.parameters(), module.parameters()),
        (average.module.buffers(), module.buffers()),
    ):
        assert [tensor.tolist() for tensor in actual] == [tensor.tolist() for tensor in expected]
    state = average.state_dict()
    assert state.keys() == {"n_averaged", *(f"module.{name}" for name in module.state_dict())}
    assert average.saved_names() == state.keys() - {"module._extra_state"}
    assert copy.deepcopy(average).state_dict().keys() == state.keys()
    module.recomputed.weight.data.fill_(5.0)  # type: ignore[union-attr]
    average.update_parameters(module)
    assert (state["module.recomputed.weight"] == 5.0).all()
    average.load_state_dict({**state, "n_averaged": torch.tensor(4)})
    assert average.n_averaged == 4
