from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import Logger
from torch.utils.data import DataLoader

from stormproof import StepTimer, step_timer

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*treespec, LeafSpec.*",
    "ignore:.*does not have many workers.*",
    "ignore:.*number of training batches.*smaller than the logging interval.*",
)


class _Loop:
    """Calls the timer's hooks as Lightning's loop does, on a clock that only this class moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, every: int) -> None:
        self.now = 100.0
        self.logged: list[tuple[int, str, float]] = []
        logger = SimpleNamespace(log_metrics=self.log_metrics)
        self.trainer: Any = SimpleNamespace(
            log_every_n_steps=every,
            global_step=0,
            current_epoch=0,
            world_size=1,
            loggers=[logger],
            state=SimpleNamespace(fn="fit"),
        )
        self.module: Any = None
        self.timer = StepTimer()
        monkeypatch.setattr(step_timer, "time", SimpleNamespace(perf_counter=lambda: self.now))
        monkeypatch.setattr(step_timer.internals, "call_between_batches", self._call_between_batches)
        self.timer.on_train_start(self.trainer, self.module)

    def _call_between_batches(self, trainer: Any, function: Any, *, run_last: bool) -> Any:
        assert run_last
        self.begin_to_fetch = function
        return lambda: None

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        assert metrics.pop("epoch") == 0
        self.logged += [(step + 1, name, value) for name, value in metrics.items()]

    def epoch(self) -> None:
        self.timer.on_train_epoch_start(self.trainer, self.module)

    def batch(self, wait: float, work: float, before: float = 0.0) -> None:
        """``before`` is what callbacks take once the one before has ended."""
        self.now += before
        self.begin_to_fetch()
        self.now += wait
        self.timer.on_train_batch_start(self.trainer, self.module, None, 0)
        self.now += work
        self.trainer.global_step += 1
        self.timer.on_train_batch_end(self.trainer, self.module, None, None, 0)

    def validation(self, seconds: float) -> None:
        self.now += seconds
        self.timer.on_validation_end(self.trainer, self.module)


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> _Loop:
    return _Loop(monkeypatch, every=3)


def test_a_window_reports_the_mean_batch_and_the_share_of_waiting(loop: _Loop):
    loop.epoch()
    for wait, work in [(1, 1), (0, 2), (3, 1)]:
        loop.batch(wait, work)
    assert loop.logged == [(3, "time/batch_seconds", 8 / 3), (3, "time/data_wait_fraction", 4 / 8)]


def test_the_batch_after_a_logging_step_is_left_out(loop: _Loop):
    loop.epoch()
    for wait, work in [(0, 1), (0, 1), (0, 1), (500, 700), (1, 3), (1, 5)]:  # the loggers write in those 500 s
        loop.batch(wait, work)
    assert loop.logged[2:] == [(6, "time/batch_seconds", 5.0), (6, "time/data_wait_fraction", 0.2)]
    assert (loop.timer.batches, loop.timer.seconds, loop.timer.data_wait_seconds) == (5, 13.0, 2.0)


@pytest.mark.parametrize("between", ["validation", "epoch"])
def test_what_lies_between_two_batches_is_nobodys_time(between: str, loop: _Loop):
    loop.epoch()
    loop.batch(1, 1)
    loop.now += 1000
    if between == "validation":
        loop.validation(1000)
    else:
        loop.epoch()
    loop.batch(1, 1)
    assert (loop.timer.batches, loop.timer.seconds, loop.timer.data_wait_seconds) == (2, 4.0, 2.0)


def test_a_validation_after_a_logging_step_makes_the_next_batch_measurable(loop: _Loop):
    loop.epoch()
    for _ in range(3):
        loop.batch(0, 1)
    loop.validation(50)
    loop.batch(1, 2)
    assert (loop.timer.batches, loop.timer.seconds) == (4, 6.0)


def test_logging_every_step_measures_the_first_batch_of_an_epoch_alone(monkeypatch: pytest.MonkeyPatch):
    loop = _Loop(monkeypatch, every=1)
    for _ in range(2):
        loop.epoch()
        for _ in range(3):
            loop.batch(1, 1)
    assert [step for step, name, _ in loop.logged if name == "time/batch_seconds"] == [1, 4]
    assert loop.timer.batches == 2


def test_a_clock_that_stands_still_divides_by_nothing(loop: _Loop):
    loop.epoch()
    for _ in range(3):
        loop.batch(0, 0)
    assert loop.logged == []


def test_a_training_that_goes_on_within_an_epoch_times_its_first_batch_from_its_start(loop: _Loop):
    for _ in range(3):
        loop.batch(0, 10)  # none has begun
    assert loop.timer.seconds == 30


def test_the_totals_go_on_after_a_resume_and_the_window_begins_anew(loop: _Loop, monkeypatch: pytest.MonkeyPatch):
    loop.epoch()
    for _ in range(2):
        loop.batch(1, 1)
    state = loop.timer.state_dict()
    assert state == {"batches": 2, "seconds": 4.0, "data_wait_seconds": 2.0}
    resumed = _Loop(monkeypatch, every=3)
    resumed.timer.load_state_dict(state)
    resumed.timer.on_train_start(resumed.trainer, resumed.module)
    resumed.epoch()
    for _ in range(3):
        resumed.batch(0, 10)
    assert resumed.logged == [(3, "time/batch_seconds", 10.0), (3, "time/data_wait_fraction", 0.0)]
    assert resumed.timer.state_dict() == {"batches": 5, "seconds": 34.0, "data_wait_seconds": 2.0}


class _Recorder(Logger):
    name, version = "recorder", 0

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[int] = []
        self.values: dict[str, float] = {}

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        if "time/batch_seconds" in metrics:
            self.steps.append(step + 1)
            self.values = metrics

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None: ...


class _Module(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        return self.layer(batch).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def _fit(folder: Path, timer: StepTimer, batches: int, **options: Any) -> _Recorder:
    recorder = _Recorder()
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=recorder,
        callbacks=[timer],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        **options,
    )
    trainer.fit(_Module(), DataLoader(torch.ones(batches, 1), batch_size=1))
    return recorder


def test_a_real_trainer_passes_the_window_on_to_its_logger(tmp_path: Path):
    timer = StepTimer()
    recorder = _fit(tmp_path, timer, batches=9, log_every_n_steps=4)
    assert recorder.steps == [4, 8]
    assert timer.batches == 7  # nine, but for the two after the logging steps
    assert recorder.values["time/batch_seconds"] > 0
    assert 0 < recorder.values["time/data_wait_fraction"] < 1
    assert 0 < timer.data_wait_seconds < timer.seconds


def test_accumulated_batches_are_measured_like_any_other(tmp_path: Path):
    timer = StepTimer()
    recorder = _fit(tmp_path, timer, batches=8, log_every_n_steps=2, accumulate_grad_batches=2)
    assert recorder.steps == [2, 4]
    assert timer.batches == 7  # eight, but for the one after the logging step 2


def test_a_trainer_without_a_logger_is_timed_too(tmp_path: Path):
    timer = StepTimer()
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        callbacks=[timer],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(_Module(), DataLoader(torch.ones(5, 1), batch_size=1))
    assert timer.batches == 5
    assert not list(tmp_path.iterdir())


def test_what_callbacks_take_between_two_batches_is_no_wait(loop: _Loop):
    loop.epoch()
    for _ in range(2):
        loop.batch(wait=1.0, work=2.0, before=5.0)
    assert loop.timer.data_wait_seconds == 2.0
    assert loop.timer.seconds == 16.0
