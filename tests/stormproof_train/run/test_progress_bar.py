import io
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from stormproof_train.run import progress_bar
from stormproof_train.run.progress_bar import ProgressLines, RunProgressBar

pytestmark = pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec.*", "ignore:.*does not have many workers.*")


class _Bar(tqdm):
    """A bar drawn at every update, into memory; remembers what it showed."""

    made: list["_Bar"]

    def __init__(self, **options: Any) -> None:
        self.screen = io.StringIO()
        self.shown: list[tuple[int, dict[str, Any]]] = []
        super().__init__(**options, file=self.screen, mininterval=0, miniters=1)
        self.made.append(self)

    def set_postfix(self, ordered_dict: Any = None, refresh: bool | None = True, **kwargs: Any) -> None:
        self.shown.append((self.n, dict(ordered_dict)))
        super().set_postfix(ordered_dict, refresh, **kwargs)


@pytest.fixture
def bars(monkeypatch: pytest.MonkeyPatch) -> list[_Bar]:
    _Bar.made = []
    monkeypatch.setattr(progress_bar, "tqdm", _Bar)
    return _Bar.made


class _Module(pl.LightningModule):
    """The loss of each step is 6, of each validation metric a quarter."""

    def __init__(self, fails_at: int | None = None) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.fails_at = fails_at

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        if self.global_step == self.fails_at:
            raise RuntimeError("the network broke")
        return self.layer(batch).sum() * 0 + 6

    def validation_step(self, batch: torch.Tensor, batch_idx: int) -> None:
        self.log("val/accuracy", 0.25)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def _fit(folder: Path, module: _Module, callback: Any = None, **options: Any) -> None:
    defaults: dict[str, Any] = {"max_epochs": 2, "num_sanity_val_steps": 0}
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=False,
        callbacks=[callback or RunProgressBar("accuracy")],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        **{**defaults, **options},
    )
    trainer.fit(module, DataLoader(torch.ones(4, 1)), DataLoader(torch.ones(1, 1)))


def test_one_bar_goes_from_the_first_step_to_the_last(bars: list[_Bar], tmp_path: Path):
    _fit(tmp_path, _Module())
    (bar,) = bars
    assert bar.total == 8
    assert [step for step, _ in bar.shown] == list(range(1, 9))
    assert bar.shown[0][1] == {"epoch": 1, "loss": "6.0000"}
    assert bar.shown[4][1] == {"epoch": 2, "loss": "6.0000", "accuracy": "0.2500"}
    assert bar.disable  # closed
    assert "8/8" in bar.screen.getvalue()
    assert "step" in bar.screen.getvalue()
    assert bar.screen.getvalue().rstrip(" ").endswith("\r")  # cleared: the line is empty again


def test_accumulated_batches_are_one_step_and_the_loss_is_that_of_a_batch(bars: list[_Bar], tmp_path: Path):
    _fit(tmp_path, _Module(), accumulate_grad_batches=2)
    (bar,) = bars
    assert bar.total == bar.n == 4
    assert {shown["loss"] for _, shown in bar.shown} == {"6.0000"}


def test_a_run_without_an_end_has_a_bar_without_one(bars: list[_Bar], tmp_path: Path):
    with pytest.raises(RuntimeError, match="the network broke"):
        _fit(tmp_path, _Module(fails_at=9), max_epochs=-1)
    (bar,) = bars
    assert bar.total is None
    assert bar.n == 9


def test_an_error_stands_alone(bars: list[_Bar], tmp_path: Path):
    with pytest.raises(RuntimeError, match="the network broke"):
        _fit(tmp_path, _Module(fails_at=3))
    (bar,) = bars
    assert bar.n == 3
    assert bar.disable


def test_a_resumed_run_begins_where_it_stopped(bars: list[_Bar]):
    trainer: Any = SimpleNamespace(is_global_zero=True, estimated_stepping_batches=100, global_step=40)
    callback = RunProgressBar("accuracy")
    callback.on_train_start(trainer, None)
    (bar,) = bars
    assert (bar.n, bar.initial, bar.total) == (40, 40, 100)
    callback.on_train_end(trainer, None)
    assert bar.disable


def test_other_ranks_draw_nothing(bars: list[_Bar]):
    trainer: Any = SimpleNamespace(is_global_zero=False, estimated_stepping_batches=math.inf, global_step=0)
    callback = RunProgressBar("accuracy")
    callback.on_train_start(trainer, None)
    callback.on_train_batch_end(trainer, None, None, None, 0)
    callback.on_exception(trainer, None, RuntimeError())
    callback.on_train_end(trainer, None)
    assert bars == []


class _Clock:
    """Each reading is some seconds after the one before."""

    def __init__(self, seconds: float) -> None:
        self.now, self.seconds = 0.0, seconds

    def monotonic(self) -> float:
        self.now += self.seconds
        return self.now


def _lines(seconds: float, folder: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> list[str]:
    """Returns the printed lines if each clock reading is ``seconds`` after the previous one."""
    monkeypatch.setattr(progress_bar, "time", _Clock(seconds))
    output: list[str] = []
    monkeypatch.setattr(progress_bar, "print_line", output.append)
    _fit(folder, _Module(), ProgressLines("accuracy"), **options)
    return output


def test_an_epoch_is_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert _lines(10.0, tmp_path, monkeypatch) == [
        "epoch 1/2, step 4/8, loss 6.0000, val/accuracy 0.2500, 0:00:50 left",
        "epoch 2/2, step 8/8, loss 6.0000, val/accuracy 0.2500, 0:00:00 left",
    ]


def test_short_epochs_share_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    lines = _lines(1.0, tmp_path, monkeypatch, max_epochs=5)
    assert [line.split(",")[0] for line in lines] == ["epoch 2/5", "epoch 4/5"]


def test_long_epochs_have_a_line_a_minute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    lines = _lines(30.0, tmp_path, monkeypatch, max_epochs=1)
    assert [line.split(", ")[1] for line in lines] == ["step 2/4", "step 4/4", "step 4/4"]


def test_a_run_without_an_end_has_lines_without_the_time_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(progress_bar, "time", _Clock(10.0))
    output: list[str] = []
    monkeypatch.setattr(progress_bar, "print_line", output.append)
    with pytest.raises(RuntimeError, match="the network broke"):
        _fit(tmp_path, _Module(fails_at=6), ProgressLines("accuracy"), max_epochs=-1)
    assert output == ["epoch 1, step 4, loss 6.0000, val/accuracy 0.2500"]
