"""What every exported callback promises: it works alone, in anyone's project.

A new callback joins by being exported; if it needs arguments, they are in ``ARGUMENTS``. Each test has a folder of its
own to work in, so that a relative path is a fresh one.
"""

import inspect
import json
import os
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as other_lightning
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import Logger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import stormproof
from tests.support.ranks import run_on_two_ranks

EXPORTED = [
    name
    for name in stormproof.__all__
    if inspect.isclass(exported := getattr(stormproof, name)) and issubclass(exported, pl.Callback)
]
ARGUMENTS: dict[str, dict[str, Any]] = {
    "CheckpointRecovery": {"dirpath": "checkpoints", "every_n_train_steps": 2, "keep_last": 6}
}
COMPANIONS: dict[str, list[str]] = {"DivergenceGuard": ["CheckpointRecovery"], "Preemption": ["CheckpointRecovery"]}
"""What a callback says at its start that it needs."""
QUIET = {
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
    "log_every_n_steps": 2,
    "accelerator": "cpu",
}
pytestmark = [
    pytest.mark.parametrize("name", EXPORTED),
    pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec.*"),  # Lightning's own, on newer torch
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*smaller than the logging interval.*"),
    pytest.mark.filterwarnings(
        "ignore:This resume is not exact, because CheckpointRecovery did not save the checkpoint.*"
    ),  # but by Lightning
]


def make_callback(name: str) -> pl.Callback:
    return getattr(stormproof, name)(**ARGUMENTS.get(name, {}))


def add_companions(callback: pl.Callback, name: str) -> list[pl.Callback]:
    return [callback, *map(make_callback, COMPANIONS.get(name, []))]


def test_arguments_after_the_first_are_keyword_only(name: str):
    parameters = list(inspect.signature(getattr(stormproof, name)).parameters.values())[1:]
    assert all(parameter.kind is inspect.Parameter.KEYWORD_ONLY for parameter in parameters)


def import_submodule(lightning: Any, *, compiled: bool = False) -> Any:
    class Regression(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
            self.network = torch.compile(network, backend="eager") if compiled else network

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            inputs, target = batch
            return nn.functional.mse_loss(self.network(inputs), target)

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val/loss", self.training_step(batch, batch_idx))

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters())

    torch.manual_seed(0)
    return Regression()


class Recorder(Logger):
    """Keeps what every rank logs; the module's own validation loss is that of each rank."""

    name, version = "recorder", 0

    def __init__(self) -> None:
        super().__init__()
        self.logged: list[tuple[int | None, str, float]] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.logged += [(step, name, value) for name, value in metrics.items() if name != "val/loss"]

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None: ...


def loader() -> Any:
    inputs = torch.arange(48.0).reshape(12, 4) / 48
    return stormproof.resumable(DataLoader(TensorDataset(inputs, inputs.sum(1, keepdim=True)), batch_size=2))


def weights(module: nn.Module) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in module.parameters()]


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_it_needs_no_more_arguments_than_are_listed_and_is_documented_with_an_example(name: str):
    callback = make_callback(name)
    assert isinstance(callback, pl.Callback)
    assert ">>>" in (type(callback).__doc__ or "")


def test_it_fits_twice_and_leaves_the_weights_alone(name: str):
    with_it, without = import_submodule(pl), import_submodule(pl)
    callback = make_callback(name)
    for module, callbacks in ((with_it, add_companions(callback, name)), (without, [])):
        trainer = pl.Trainer(max_epochs=1, callbacks=callbacks, logger=False, **QUIET)
        trainer.fit(module, loader(), loader())
        trainer.fit_loop.max_epochs = 2
        trainer.fit(module, loader(), loader())
        assert trainer.global_step == 12
    assert all(
        torch.equal(parameter, expected_parameter)
        for parameter, expected_parameter in zip(weights(with_it), weights(without), strict=True)
    )


def test_its_state_is_plain_and_survives_a_round_trip(name: str):
    callback = make_callback(name)
    callbacks = add_companions(callback, name)
    pl.Trainer(max_epochs=1, callbacks=callbacks, logger=False, **QUIET).fit(import_submodule(pl), loader(), loader())
    state = callback.state_dict()
    assert json.loads(json.dumps(state)) == state
    fresh = make_callback(name)
    fresh.load_state_dict(state)
    assert fresh.state_dict() == state


def test_it_resumes_from_a_checkpoint_that_loads_with_weights_only(name: str, tmp_path: Path):
    first = make_callback(name)
    trainer = pl.Trainer(max_epochs=1, callbacks=add_companions(first, name), logger=False, **QUIET)
    trainer.fit(import_submodule(pl), loader(), loader())
    trainer.save_checkpoint(tmp_path / "x.ckpt")
    torch.load(tmp_path / "x.ckpt", weights_only=True)
    second = make_callback(name)
    resumed = pl.Trainer(max_epochs=2, callbacks=add_companions(second, name), logger=False, **QUIET)
    resumed.fit(import_submodule(pl), loader(), loader(), ckpt_path=tmp_path / "x.ckpt", weights_only=True)
    assert resumed.global_step == 12
    if first.state_dict():
        assert second.state_dict() != make_callback(name).state_dict()


def test_it_works_in_the_trainer_of_the_other_lightning(name: str):
    callback = make_callback(name)
    trainer = other_lightning.Trainer(max_epochs=1, callbacks=add_companions(callback, name), logger=False, **QUIET)
    trainer.fit(import_submodule(other_lightning), loader(), loader())
    assert trainer.global_step == 6


@pytest.mark.filterwarnings("ignore:`LightningModule.configure_optimizers` returned `None`.*")
def test_it_works_and_resumes_without_an_optimizer(name: str, tmp_path: Path):
    def fit(epochs: int, **options: Any) -> pl.Trainer:
        module, callbacks = import_submodule(pl), add_companions(make_callback(name), name)
        module.configure_optimizers = lambda: None
        trainer = pl.Trainer(max_epochs=epochs, callbacks=callbacks, logger=False, **QUIET)
        trainer.fit(module, loader(), loader(), **options)
        return trainer

    fit(1).save_checkpoint(tmp_path / "x.ckpt")
    assert fit(2, ckpt_path=tmp_path / "x.ckpt").fit_loop.total_batch_idx == 11


@pytest.mark.slow
def test_it_works_on_a_compiled_network(name: str):
    torch.compiler.reset()  # the networks of all tests have their forward in common, and may be compiled eight times
    trainer = pl.Trainer(max_epochs=1, callbacks=add_companions(make_callback(name), name), logger=False, **QUIET)
    trainer.fit(import_submodule(pl, compiled=True), loader(), loader())
    assert trainer.global_step == 6


@pytest.fixture(scope="module")
def both_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What each of two ranks has seen of each callback."""
    folder = tmp_path_factory.mktemp("ranks")
    run_on_two_ranks(__file__, str(folder), cwd=folder, timeout=250)
    return folder


@pytest.mark.slow
def test_it_works_on_two_ranks(name: str, both_ranks: Path):
    ranks = [json.loads((both_ranks / name / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    assert [rank["steps"] for rank in ranks] == [3, 3]
    assert ranks[0]["logged"] == ranks[1]["logged"]  # numbers of the whole job


def _on_two_ranks(name: str, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    os.chdir(folder)
    callback = make_callback(name)
    recorder = Recorder()
    callbacks = add_companions(callback, name)
    trainer = pl.Trainer(max_epochs=1, callbacks=callbacks, logger=recorder, strategy="ddp", devices=2, **QUIET)
    trainer.fit(import_submodule(pl), loader(), loader())
    record = {"steps": trainer.global_step, "logged": recorder.logged}
    (folder / f"rank{trainer.global_rank}.json").write_text(json.dumps(record))


if __name__ == "__main__":
    for exported_name in EXPORTED:
        _on_two_ranks(exported_name, Path(sys.argv[1], exported_name))
