"""Hyperparameters and entries of hooks that ``torch.load(weights_only=True)`` refuses do not stop a run."""

import argparse
import enum
import functools
import shutil
import threading
import warnings
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import torchmetrics
from omegaconf import OmegaConf
from torch import nn

from stormproof import CheckpointRecovery, resumable
from stormproof.errors import NotResumableError
from tests.support.recovery_fits import BatchEndCallback
from tests.support.small_fits import (
    BOTH_PACKAGES,
    LIGHTNING_WARNING_FILTERS,
    RegressionModule,
    make_loader,
    make_module,
    make_trainer,
)

pytestmark = [
    *LIGHTNING_WARNING_FILTERS,
    pytest.mark.filterwarnings("ignore:Attribute .* is an instance of `nn.Module`"),
    pytest.mark.filterwarnings("ignore:Checkpoints do not contain"),
]


class _Color(enum.Enum):
    RED = 1


class _WithoutRepr:
    def __repr__(self) -> str:
        raise RuntimeError("no repr")


class _Unpicklable(_WithoutRepr):
    """Raises in ``repr`` and when it is pickled."""

    def __reduce__(self) -> Any:
        raise ValueError("no pickle")


HYPERPARAMETERS = {
    "array": lambda: np.zeros(3),
    "module": lambda: nn.Linear(2, 2),
    "loss": nn.CrossEntropyLoss,
    "metrics": lambda: torchmetrics.MetricCollection([torchmetrics.MeanSquaredError()]),
    "modules in a list": lambda: [nn.ReLU(), {"a": nn.ELU()}],
    "partial": lambda: functools.partial(torch.optim.Adam, lr=1e-3),
    "class": lambda: nn.ReLU,
    "function": lambda: torch.relu,
    "enum": lambda: _Color.RED,
    "path": lambda: Path("x"),
    "namespace": lambda: argparse.Namespace(a=1),
    "DictConfig": lambda: OmegaConf.create({"a": 1}),
    "callbacks": lambda: [CheckpointRecovery("x"), pl.callbacks.EarlyStopping("loss")],
    "object without repr": _WithoutRepr,
}


class _Configured(RegressionModule):
    def __init__(self, thing: Any = None, width: int = 8) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)


def _fit(net: Any, recovery: CheckpointRecovery, lightning: Any = pl, **options: Any) -> Any:
    fit = make_trainer(lightning, callbacks=[recovery])
    fit.fit(net, resumable(make_loader()), ckpt_path=recovery.latest_checkpoint(), **options)
    return fit


def _module_of(lightning: Any, kind: type, *arguments: Any) -> Any:
    return type(kind.__name__, (kind, lightning.LightningModule), {})(*arguments)


def _copy(recovery: CheckpointRecovery, folder: Path) -> CheckpointRecovery:
    """Copies the finished run, in whose folder this process refuses another fit."""
    shutil.copytree(recovery.store.catalog.load_folder, folder / "copy")
    return CheckpointRecovery(folder / "copy", every_n_train_steps=2)


def _load_checkpoints(recovery: CheckpointRecovery) -> list[dict[str, Any]]:
    return [torch.load(checkpoint.path, weights_only=True) for checkpoint in recovery.store.read_checkpoints()]


@pytest.mark.parametrize("make", HYPERPARAMETERS.values(), ids=HYPERPARAMETERS.keys())
def test_a_hyperparameter_that_torch_refuses_is_left_out_with_a_warning(make: Any, tmp_path: Path):
    recovery = CheckpointRecovery(tmp_path, every_n_train_steps=2, keep_last=9)
    with warnings.catch_warnings(record=True) as warning_records:
        warnings.simplefilter("always")
        _fit(_module_of(pl, _Configured, make()), recovery)
    messages = [str(entry.message) for entry in warning_records if "Checkpoints do not contain" in str(entry.message)]
    assert len(messages) == 1
    assert "hyper_parameters/thing (" in messages[0]
    checkpoints = _load_checkpoints(recovery)
    assert [entry["global_step"] for entry in checkpoints] == [0, 2, 4, 6]
    assert all(entry["hyper_parameters"] == {"width": 8} for entry in checkpoints)
    assert all(list(entry["stormproof"]["left_out"]) == ["hyper_parameters/thing"] for entry in checkpoints)


def test_a_run_with_such_a_hyperparameter_resumes_exactly(tmp_path: Path):
    def interrupt(step: int) -> None:
        if step == 4:
            raise RuntimeError("interrupted")

    whole = _module_of(pl, _Configured, nn.ReLU)
    _fit(whole, CheckpointRecovery(tmp_path / "whole", every_n_train_steps=1))
    recovery = CheckpointRecovery(tmp_path / "resumed", every_n_train_steps=1)
    interrupted = make_trainer(callbacks=[BatchEndCallback(interrupt), recovery])
    with pytest.raises(RuntimeError, match="interrupted"):
        interrupted.fit(_module_of(pl, _Configured, nn.ReLU), resumable(make_loader()))
    resumed = _module_of(pl, _Configured, nn.ReLU)
    assert recovery.latest_checkpoint() is not None
    _fit(resumed, recovery)
    assert torch.equal(whole.layer.weight, resumed.layer.weight)


class _OmegaConf(RegressionModule):
    def __init__(self) -> None:
        super().__init__()
        self.save_hyperparameters(OmegaConf.create({"width": 8, "norm": {"kind": "batch"}}), logger=False)


@BOTH_PACKAGES
def test_an_omegaconf_config_is_left_out_as_a_whole(lightning: Any, tmp_path: Path):
    recovery = CheckpointRecovery(tmp_path, every_n_train_steps=2)
    with pytest.warns(UserWarning, match=r"contain hyper_parameters \(omegaconf.dictconfig.DictConfig\), because"):
        _fit(_module_of(lightning, _OmegaConf), recovery, lightning)
    checkpoint = _load_checkpoints(recovery)[-1]
    assert not {"hyper_parameters", "hparams_type"} & checkpoint.keys()
    left_out = {"hyper_parameters": "{'width': 8, 'norm': {'kind': 'batch'}}"}
    assert checkpoint["stormproof"]["left_out"] == left_out
    assert type(_module_of(lightning, _OmegaConf)).load_from_checkpoint(
        recovery.latest_checkpoint()
    ).layer.weight.shape == (
        1,
        2,
    )


def test_hyperparameters_that_torch_loads_stay(tmp_path: Path):
    recovery = CheckpointRecovery(tmp_path)
    _fit(_module_of(pl, _Configured, {"a": [1, (2.0, "b")], "c": torch.ones(1), "d": torch.float32}), recovery)
    thing = _load_checkpoints(recovery)[-1]["hyper_parameters"]["thing"]
    assert thing == {"a": [1, (2.0, "b")], "c": torch.ones(1), "d": torch.float32}
    assert "left_out" not in _load_checkpoints(recovery)[-1]["stormproof"]


def test_numpy_numbers_become_python_numbers_in_hyperparameters_and_state(tmp_path: Path):
    class Cosine(_Configured):
        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
            schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: np.cos(step / 10))
            return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    recovery = CheckpointRecovery(tmp_path, every_n_train_steps=6)
    fit = _fit(_module_of(pl, Cosine, [np.int64(3), np.float32(0.5)], np.bool_(True)), recovery)
    checkpoint = _load_checkpoints(recovery)[-1]
    assert repr(checkpoint["hyper_parameters"]) == "{'thing': [3, 0.5], 'width': True}"
    rate = fit.optimizers[0].param_groups[0]["lr"]
    assert type(rate) is np.float64
    assert repr(checkpoint["lr_schedulers"][0]["_last_lr"]) == f"[{float(rate)!r}]"
    assert repr(checkpoint["optimizer_states"][0]["param_groups"][0]["lr"]) == repr(float(rate))


def test_hyperparameters_of_a_data_module_are_left_out_too(tmp_path: Path):
    class Data(pl.LightningDataModule):
        def __init__(self, transform: Any) -> None:
            super().__init__()
            self.save_hyperparameters(logger=False)

        def train_dataloader(self) -> Any:
            return resumable(make_loader())

    recovery = CheckpointRecovery(tmp_path)
    with pytest.warns(UserWarning, match=r"contain datamodule_hyper_parameters/transform \(torch"):
        make_trainer(callbacks=[recovery]).fit(make_module(), Data(nn.ReLU))
    assert _load_checkpoints(recovery)[-1]["datamodule_hyper_parameters"] == {}


class _Hooks(RegressionModule):
    """Stores an object in each checkpoint and needs it to resume."""

    def __init__(self, extra: Any = Fraction(1, 2)) -> None:
        super().__init__()
        self.extra, self.loaded = extra, None

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint |= {"extra": self.extra, "plain": {"a": 1}}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.loaded = checkpoint["extra"]


@BOTH_PACKAGES
def test_what_a_hook_adds_is_stored_pickled_and_restored_on_request(lightning: Any, tmp_path: Path):
    recovery = CheckpointRecovery(tmp_path / "first", every_n_train_steps=2)
    with pytest.warns(UserWarning, match=r"contain extra \(fractions.Fraction\), because"):
        _fit(_module_of(lightning, _Hooks), recovery, lightning)
    checkpoint = _load_checkpoints(recovery)[-1]
    assert "extra" not in checkpoint
    assert checkpoint["plain"] == {"a": 1}
    assert checkpoint["stormproof"]["left_out"] == {"extra": "Fraction(1, 2)"}

    net = _module_of(lightning, _Hooks)
    with (
        pytest.warns(UserWarning, match="of this checkpoint were not restored: extra"),
        pytest.raises(KeyError),
    ):
        _fit(net, recovery, lightning)
    _fit(net, _copy(recovery, tmp_path), lightning, weights_only=False)
    assert net.loaded == Fraction(1, 2)


def test_a_pickled_entry_follows_the_value_of_the_hook(tmp_path: Path):
    class Counting(_Hooks):
        def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            checkpoint["extra"] = Fraction(self.trainer.global_step)

    recovery, net = CheckpointRecovery(tmp_path / "first", every_n_train_steps=2), _module_of(pl, Counting)
    _fit(net, recovery)
    _fit(net, _copy(recovery, tmp_path), weights_only=False)
    assert net.loaded == Fraction(6)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("layout", [torch.jagged, torch.strided])
def test_a_nested_tensor_that_a_hook_adds_is_restored(layout: torch.layout, tmp_path: Path):
    class Nesting(_Hooks):
        def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            checkpoint["extra"] = torch.nested.nested_tensor([torch.ones(2), torch.zeros(3)], layout=layout)

    recovery, net = CheckpointRecovery(tmp_path / "first", every_n_train_steps=2), _module_of(pl, Nesting)
    _fit(net, recovery)
    is_pickled = "extra" not in _load_checkpoints(recovery)[-1]  # depends on the version of torch
    _fit(net, _copy(recovery, tmp_path), weights_only=not is_pickled)
    assert [part.tolist() for part in net.loaded.unbind()] == [[1, 1], [0, 0, 0]]


@pytest.mark.parametrize("extra", [threading.Lock(), lambda: 1, _Unpicklable()], ids=["lock", "lambda", "rude"])
def test_an_entry_that_cannot_be_pickled_is_left_out(extra: Any, tmp_path: Path):
    recovery = CheckpointRecovery(tmp_path)
    _fit(_module_of(pl, _Hooks, extra), recovery)
    our_entry = _load_checkpoints(recovery)[-1]["stormproof"]
    assert list(our_entry["left_out"]) == ["extra"]
    assert our_entry["pickled"] == {}


def test_state_that_cannot_be_pickled_stops_the_run_at_its_start(tmp_path: Path):
    class Stateful(pl.Callback):
        def state_dict(self) -> dict[str, Any]:
            return {"count": threading.Lock()}

    with pytest.raises(NotResumableError, match=r"callbacks/\S*Stateful\S*/count: _thread.lock"):
        make_trainer(callbacks=[Stateful(), CheckpointRecovery(tmp_path)]).fit(make_module(), resumable(make_loader()))
