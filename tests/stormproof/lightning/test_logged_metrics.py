"""What ``self.log`` is still adding up: taken apart and put together between any two batches, it logs the same."""

import io
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.distributed.elastic.utils.distributed import get_free_port
from torchmetrics import MaxMetric, MeanMetric, MetricCollection, SumMetric

from stormproof.distributed.gloo_shutdown import destroy_gloo_before_exit
from stormproof.lightning import internals, logged_metrics
from tests.support.ranks import call_on_two_ranks, join_two_ranks
from tests.support.small_fits import (
    BOTH_PACKAGES,
    LIGHTNING_WARNING_FILTERS,
    RegressionModule,
    RowsLogger,
    ValidatedRegressionModule,
    make_loader,
    make_module,
    make_trainer,
)

pytestmark = LIGHTNING_WARNING_FILTERS

EPOCH = {"on_step": False, "on_epoch": True}
KINDS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "by step": {"on_step": True, "on_epoch": False},
    "by epoch": EPOCH,
    "by both": {"on_step": True, "on_epoch": True},
    "mean": {**EPOCH, "reduce_fx": "mean"},
    "sum": {**EPOCH, "reduce_fx": "sum"},
    "max": {**EPOCH, "reduce_fx": "max"},
    "min": {**EPOCH, "reduce_fx": "min"},
    "torch.max": {**EPOCH, "reduce_fx": torch.max},
    "torch.sum": {**EPOCH, "reduce_fx": torch.sum},
    "Python's max": {**EPOCH, "reduce_fx": max},
    "Python's min": {**EPOCH, "reduce_fx": min},
    "Python's sum": {**EPOCH, "reduce_fx": sum},
    "of other sizes": {**EPOCH, "batch_size": 5},
    "in the progress bar": {**EPOCH, "prog_bar": True},
    "not in the logger": {**EPOCH, "logger": False},
    "with its graph": {**EPOCH, "enable_graph": True},
    "without its loader": {**EPOCH, "add_dataloader_idx": False},
    "of all ranks": {**EPOCH, "sync_dist": True},
    "of all ranks, by both": {"on_step": True, "on_epoch": True, "sync_dist": True},
    "largest of all ranks": {**EPOCH, "reduce_fx": "max", "sync_dist": True},
    "sum of all ranks": {**EPOCH, "reduce_fx": "sum", "sync_dist": True},
    "of rank 0": {**EPOCH, "rank_zero_only": True},
}


class _Logs(ValidatedRegressionModule):
    """Logs in every way, from its own hooks."""

    def __init__(self) -> None:
        super().__init__()
        self.deep = nn.ModuleDict({"metric": MeanMetric()})
        self.largest = MaxMetric()
        self.collection = MetricCollection({"mean": MeanMetric(), "sum": SumMetric()}, prefix="collected/")

    def training_step(self: Any, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        loss = super().training_step(batch, batch_idx)
        value = loss * (1 + batch_idx % 3)
        for name, log_options in KINDS.items():
            if name != "of rank 0" or self.global_rank == 0:
                self.log(name, value, **log_options)
        if batch_idx % 2:
            self.log("sometimes", value, on_step=True, on_epoch=True)
        self.deep["metric"](value.detach())
        self.log("a metric", self.deep["metric"], on_step=True, on_epoch=True)
        self.largest.update(value.detach())
        self.log("an updated metric", self.largest, on_step=False, on_epoch=True)
        self.collection(value.detach())
        self.log_dict(self.collection, on_step=True, on_epoch=True)
        return loss

    def on_train_epoch_start(self: Any) -> None:
        self.log("at the epoch's start", float(self.trainer.current_epoch))

    def on_before_optimizer_step(self: Any, optimizer: Any) -> None:
        self.log("before the step", self.layer.weight.grad.norm(), on_step=True, on_epoch=True)

    def on_train_epoch_end(self: Any) -> None:
        self.log("at the epoch's end", self.trainer.callback_metrics["sum"])


class _Callback(pl.Callback):
    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.log("from a callback", outputs["loss"], on_step=True, on_epoch=True)


class _ResetsMetrics(pl.Callback):
    """Between any two batches: keeps the state, wipes all that is logged, sets the state back."""

    def __init__(self, back: bool = True) -> None:
        self.back, self.times = back, 0

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        internals.call_between_batches(trainer, lambda: self._take_apart(trainer))

    def _take_apart(self, trainer: Any) -> None:
        buffer = io.BytesIO()
        torch.save(logged_metrics.capture_logged(trainer), buffer)
        buffer.seek(0)
        state = torch.load(buffer, weights_only=True)
        connector = trainer._logger_connector
        connector.reset_metrics()
        connector._first_loop_iter = connector._current_fx = None
        trainer.fit_loop.epoch_loop._results.clear()
        assert not trainer.callback_metrics
        if self.back:
            logged_metrics.restore_logged(trainer, state)
        self.times += 1


class _MetricRecorder(pl.Callback):
    """What callbacks and the progress bar see after each batch and each epoch."""

    def __init__(self) -> None:
        self.recorded: list[dict[str, float]] = []

    def on_train_batch_start(self, trainer: Any, *args: Any) -> None:
        self._look(trainer)

    def on_train_epoch_end(self, trainer: Any, *args: Any) -> None:
        self._look(trainer)

    def _look(self, trainer: Any) -> None:
        for metrics in (trainer.callback_metrics, trainer.logged_metrics, trainer.progress_bar_metrics):
            self.recorded.append({name: float(value) for name, value in metrics.items()})


def _fit(lightning: Any, *extra: pl.Callback, kind: type = _Logs, **options: Any) -> tuple[Any, Any]:
    rows, sees = RowsLogger(), _MetricRecorder()
    fit = make_trainer(
        lightning,
        max_epochs=2,
        logger=rows,
        log_every_n_steps=1,
        val_check_interval=4,
        callbacks=[_Callback(), *extra, sees],
        **options,
    )
    fit.fit(make_module(lightning, kind), make_loader(), make_loader(4))
    return rows.rows, sees.recorded


@pytest.fixture(scope="module")
def straight() -> tuple[Any, Any]:
    """What a run logs that nobody takes apart."""
    return _fit(pl)


@BOTH_PACKAGES
def test_a_run_that_is_taken_apart_between_batches_logs_the_same(lightning: Any):
    apart = _ResetsMetrics()
    rows, metrics_by_step = _fit(lightning)
    rows_apart, seen_apart = _fit(lightning, apart)
    assert apart.times == 12
    assert rows_apart == rows
    assert seen_apart == metrics_by_step


@pytest.mark.parametrize("name", [name for name in KINDS if name not in {"not in the logger", "by step"}])
def test_every_kind_is_logged_at_the_end_of_each_epoch(name: str, straight: tuple[Any, Any]):
    """So that the test above compares what it says."""
    rows, _ = straight
    logged = name if KINDS[name].get("on_step") is not True else f"{name}_epoch"
    steps = [step for step, metrics in rows if logged in metrics]
    assert len(steps) == (12 if name == "as it is" else 2)


@pytest.mark.slow
def test_what_was_wiped_and_not_set_back_is_missed(straight: tuple[Any, Any]):
    rows, metrics_by_step = straight
    rows_wiped, seen_wiped = _fit(pl, _ResetsMetrics(back=False))
    assert rows_wiped != rows
    assert seen_wiped != metrics_by_step


def test_the_metrics_logged_last_can_be_set_back_without_the_means():
    class _Metrics(_ResetsMetrics):
        def _take_apart(self, trainer: Any) -> None:
            state = logged_metrics.capture_logged(trainer)
            results = dict(trainer.fit_loop.epoch_loop._results)
            trainer._logger_connector.reset_metrics()
            logged_metrics.restore_metrics(trainer, state)
            assert dict(trainer.fit_loop.epoch_loop._results) == results
            assert logged_metrics.capture_logged(trainer)["metrics"] == state["metrics"]
            self.times += 1

    metrics = _Metrics()
    assert _fit(pl, metrics) == _fit(pl)
    assert metrics.times == 12


def test_a_mean_over_a_group_of_processes_begins_anew_and_says_so():
    class _Grouped(RegressionModule):
        def training_step(self: Any, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
            log_options: dict[str, Any] = {"on_step": False, "on_epoch": True, "sync_dist": True, "batch_size": 1}
            self.log("index", float(batch_idx), sync_dist_group="a group", **log_options)
            self.log("all", float(batch_idx), **log_options)
            return super().training_step(batch, batch_idx)

    class _Once(_ResetsMetrics):
        def _take_apart(self, trainer: Any) -> None:
            if trainer.global_step == 3:
                super()._take_apart(trainer)

    fit = make_trainer(callbacks=[_Once()])
    with pytest.warns(match=r"values of training_step\.index count only the remaining batches"):
        fit.fit(make_module(kind=_Grouped), make_loader())
    assert fit.callback_metrics["index"] == 4  # of 3, 4 and 5
    assert fit.callback_metrics["all"] == 2.5


def test_a_value_that_is_logged_otherwise_than_before_is_still_refused():
    class _Changes(RegressionModule):
        def training_step(self: Any, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
            self.log("loss", torch.ones(()), on_epoch=True, on_step=False, prog_bar=batch_idx == 3)
            return super().training_step(batch, batch_idx)

    with pytest.raises(Exception, match="twice in `training_step` with different arguments"):
        make_trainer(callbacks=[_ResetsMetrics()]).fit(make_module(kind=_Changes), make_loader())


def _on_a_rank(rank: int, folder: str, port: int) -> None:
    join_two_ranks(rank, port)
    destroy_gloo_before_exit()
    options = {"strategy": "ddp", "devices": 2, "use_distributed_sampler": False}
    kind = type("_OfRank", (_Logs,), {"training_step": _scaled})
    rows, metrics_by_step = _fit(pl, kind=kind, **options)
    rows_apart, seen_apart = _fit(pl, _ResetsMetrics(), kind=kind, **options)
    torch.save({"rows": rows, "same": rows == rows_apart and metrics_by_step == seen_apart}, f"{folder}/{rank}.pt")


def _scaled(self: Any, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
    """Each rank sees other numbers."""
    return _Logs.training_step(self, batch + self.global_rank, batch_idx)


@pytest.mark.slow
def test_two_ranks_that_are_taken_apart_log_the_same(tmp_path: Path):
    call_on_two_ranks(_on_a_rank, str(tmp_path), get_free_port())
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert first["same"]
    assert second["same"]
    ends = [[metrics for _, metrics in rank_result["rows"] if "mean" in metrics] for rank_result in (first, second)]
    assert len(ends[0]) == 2
    for first_metrics, second_metrics in zip(*ends, strict=True):
        assert first_metrics["of all ranks"] == second_metrics["of all ranks"]
        assert first_metrics["mean"] != second_metrics["mean"]
