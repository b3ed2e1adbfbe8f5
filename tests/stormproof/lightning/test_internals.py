"""Each private name of Lightning that we touch, and what we take it to mean: if one moves, this says which."""

import io
import signal
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.environments import LightningEnvironment
from pytorch_lightning.strategies.launchers.subprocess_script import _SubprocessScriptLauncher
from torch.utils.data import DataLoader

from stormproof.lightning import internals, logged_metrics
from tests.support.small_fits import (
    BOTH_PACKAGES,
    LIGHTNING_PYTORCH,
    LIGHTNING_WARNING_FILTERS,
    IndexDataset,
    IndexStream,
    RegressionModule,
    RowsLogger,
    ValidatedRegressionModule,
    make_loader,
    make_module,
    make_trainer,
)

pytestmark = LIGHTNING_WARNING_FILTERS


class _OnBatch(pl.Callback):
    """Calls ``function(trainer, module)`` between two batches, the n-th time only where ``n`` is given."""

    def __init__(self, function: Callable[[Any, Any], Any], n: int | None = None) -> None:
        self.function, self.n, self.times = function, n, 0
        self.stop: Callable[[], None] | None = None

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.stop = internals.call_between_batches(trainer, lambda: self._call(trainer, pl_module))

    def _call(self, trainer: Any, pl_module: Any) -> None:
        self.times += 1
        if self.n in {None, self.times}:
            self.function(trainer, pl_module)


def _inside_a_fit(lightning: Any) -> dict[str, Any]:
    """What each of the names is between the first batch and the second, or MISSING."""
    results: list[Any] = []

    class _EnoughError(Exception): ...

    def stop(trainer: Any, pl_module: Any) -> None:
        results.append({name: _lookup(trainer, name) for name in NAMES})
        raise _EnoughError

    class _Logs(ValidatedRegressionModule):
        def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
            loss = super().training_step(batch, batch_idx)
            self.log("loss", loss, on_step=True, on_epoch=True)  # type: ignore[attr-defined]
            return loss

    fit = make_trainer(lightning, callbacks=[_OnBatch(stop, n=2)])
    with pytest.raises(_EnoughError):
        fit.fit(make_module(lightning, _Logs), make_loader(), make_loader())
    return results[0]


MISSING = object()
NAMES = (
    "_checkpoint_connector.dump_checkpoint",
    "_checkpoint_connector.resume_start",
    "_checkpoint_connector._parse_ckpt_path",
    "_logger_connector._callback_metrics",
    "_logger_connector._logged_metrics",
    "_logger_connector._progress_bar_metrics",
    "_logger_connector._first_loop_iter",
    "_logger_connector._current_fx",
    "fit_loop._data_fetcher.fetched",
    "fit_loop._combined_loader._load_state_dicts",
    "fit_loop._combined_loader_states_to_load",
    "fit_loop._load_combined_loader_states",
    "fit_loop._combined_loader._mode",
    "fit_loop._last_train_dl_reload_epoch",
    "fit_loop.epoch_loop.batch_progress.current.ready",
    "fit_loop.epoch_loop._on_before_fetch",
    "fit_loop.epoch_loop.on_advance_end",
    "fit_loop.epoch_loop._results",
    "fit_loop.epoch_loop._batches_that_stepped",
    "fit_loop.epoch_loop.val_loop._last_val_dl_reload_epoch",
    "fit_loop.epoch_loop.val_loop.setup_data",
    "fit_loop.epoch_loop.val_loop.batch_progress.total.ready",
    "fit_loop.on_iteration_done",
    "fit_loop.state_dict",
    "fit_loop.load_state_dict",
    "fit_loop.epoch_loop._broadcast_sigterm_tensor",
    "_signal_connector.register_signal_handlers",
    "precision_plugin._after_closure",
    "precision_plugin._clip_gradients",
    "precision_plugin.clip_gradients",
    "precision_plugin.clip_grad_by_norm",
    "precision_plugin.main_params",
    "strategy.load_checkpoint",
    "strategy.process_dataloader",
    "strategy.root_device",
    "strategy.reduce",
)


def _lookup(thing: Any, path: str) -> Any:
    for part in path.split("."):
        thing = getattr(thing, part, MISSING)
        if thing is MISSING:
            return MISSING
    return thing


@pytest.fixture(scope="module", params=[pl, LIGHTNING_PYTORCH], ids=["pytorch_lightning", "lightning.pytorch"])
def names(request: pytest.FixtureRequest) -> dict[str, Any]:
    return _inside_a_fit(request.param)


@pytest.mark.parametrize("name", NAMES)
def test_lightning_still_has_the_name(name: str, names: dict[str, Any]):
    assert names[name] is not MISSING, f"trainer.{name} is gone: look for what took its place"


def test_a_logged_value_still_has_the_parts_that_we_save(names: dict[str, Any]):
    result = names["fit_loop.epoch_loop._results"]["training_step.loss"]
    parts = {"value", "cumulated_batch_size", "_update_count", "_forward_cache", "has_reset", "is_tensor", "meta"}
    assert [part for part in sorted(parts) if not hasattr(result, part)] == []
    known_fields = {*logged_metrics._METADATA_FIELDS, "dataloader_idx", "metric_attribute", "reduce_fx", "_sync"}
    assert set(vars(result.meta)) == known_fields, "what self.log is told has other parts: save the new ones too"
    assert set(vars(result.meta.sync)) == {"fn", "_should", "rank_zero_only", "_op", "_group", "_fn"}
    assert set(result.metric_state) == {"value", "cumulated_batch_size"}


@BOTH_PACKAGES
def test_loaders_of_every_stage_are_shown_before_they_are_iterated_with_lightnings_own_seeds(
    lightning: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PL_SEED_WORKERS", "1")
    shown: list[tuple[str, bool]] = []

    def show(shown_loader: Any) -> None:
        shown.append((type(shown_loader).__name__, shown_loader.worker_init_fn is not None))

    fit = make_trainer(lightning, num_sanity_val_steps=0)
    stop = internals.call_with_loaders(fit, show)
    train, val = make_loader(), make_loader(2)
    fit.fit(make_module(lightning, ValidatedRegressionModule), train, val)
    stop()
    fit.validate(fit.lightning_module, make_loader(2), verbose=False)
    assert shown == [("DataLoader", True), ("DataLoader", True)]
    assert "process_dataloader" not in vars(fit.strategy)


@BOTH_PACKAGES
def test_lightning_answers_no_signal_until_it_is_let(lightning: Any):
    fit = make_trainer(lightning)
    before = signal.getsignal(signal.SIGTERM)
    stop = internals.disable_signal_handling(fit)
    handlers: list[Any] = []

    def look(*_: Any) -> None:
        handlers.append(signal.getsignal(signal.SIGTERM))

    fit.callbacks.append(type("Look", (lightning.Callback,), {"on_train_start": look})())
    fit.fit(make_module(lightning), make_loader())
    stop()
    fit.fit_loop.max_epochs = 2
    fit.fit(fit.lightning_module, make_loader())
    assert handlers[0] is before
    assert handlers[1] is not before


@BOTH_PACKAGES
def test_a_dump_is_what_the_trainer_would_save(lightning: Any, tmp_path: Path):
    fit = make_trainer(lightning)
    fit.fit(make_module(lightning, ValidatedRegressionModule), make_loader(), make_loader())
    fit.save_checkpoint(tmp_path / "x.ckpt")
    buffer = io.BytesIO()
    torch.save(internals.dump_checkpoint(fit), buffer)
    buffer.seek(0)
    dumped, saved = torch.load(buffer, weights_only=True), torch.load(tmp_path / "x.ckpt", weights_only=True)
    weights, saved_weights = dumped.pop("state_dict"), saved.pop("state_dict")
    assert weights.keys() == saved_weights.keys()
    assert all(torch.equal(weights[name], saved_weights[name]) for name in weights)
    assert dumped == saved
    assert {"epoch", "global_step", "loops", "callbacks", "optimizer_states"} <= set(dumped)


class _Journal(pl.Callback):
    """Every hook that Lightning calls between the fetching of a batch and that of the next."""

    def __init__(self, events: list[str]) -> None:
        self.events = events

    def on_train_epoch_start(self, *args: Any) -> None:
        self.events.append("epoch begins")

    def on_train_batch_start(self, *args: Any) -> None:
        self.events.append("batch begins")

    def on_train_batch_end(self, *args: Any) -> None:
        self.events.append("batch ends")

    def on_validation_end(self, *args: Any) -> None:
        self.events.append("validated")

    def on_train_epoch_end(self, *args: Any) -> None:
        self.events.append("epoch ends")


@BOTH_PACKAGES
def test_between_batches_is_after_all_of_the_one_and_before_the_fetching_of_the_next(lightning: Any):
    events: list[str] = []

    class _Steps(RegressionModule):
        def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            events.append("moved")
            return batch

        def on_train_batch_end(self, *args: Any) -> None:
            events.append("module's batch ends")

    between = _OnBatch(lambda *_: events.append("between"))
    data = IndexDataset(4, on_fetch=lambda index: events.append(f"fetched {index}"))
    fit = make_trainer(lightning, callbacks=[between, _Journal(events)], max_epochs=2)
    fit.fit(make_module(lightning, _Steps), DataLoader(data, batch_size=2))
    first, second = ["fetched 0", "fetched 1", "moved"], ["fetched 2", "fetched 3", "moved"]
    batch = ["batch begins", "batch ends", "module's batch ends"]
    epoch = ["epoch begins", "between", *first, *batch, "between", *second, *batch, "epoch ends"]
    assert events == [*epoch, *epoch]


def test_between_batches_is_after_the_validation_that_the_batch_brought_about():
    events: list[str] = []
    fit = make_trainer(
        callbacks=[_OnBatch(lambda *_: events.append("between")), _Journal(events)], val_check_interval=2
    )
    fit.fit(make_module(kind=ValidatedRegressionModule), make_loader(8), make_loader(2))
    batch = ["between", "batch begins", "batch ends"]
    assert events == ["epoch begins", *(2 * [*batch, *batch, "validated"]), "epoch ends"]


def test_between_batches_the_schedules_and_the_loggers_are_done_too():
    lr_by_step: list[tuple[float, int]] = []
    rows = RowsLogger()

    class _Scheduled(RegressionModule):
        def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
            self.log("step", float(batch_idx))  # type: ignore[attr-defined]
            return super().training_step(batch, batch_idx)

        def configure_optimizers(self) -> Any:
            optimizer = super().configure_optimizers()
            schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / 2**step)
            return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    def look(fit: Any, _: Any) -> None:
        lr_by_step.append((fit.optimizers[0].param_groups[0]["lr"], len(rows.rows)))

    make_trainer(callbacks=[_OnBatch(look)], logger=rows, log_every_n_steps=1).fit(
        make_module(kind=_Scheduled), make_loader(6)
    )
    assert lr_by_step == [(0.1, 0), (0.05, 1), (0.025, 2)]


def test_what_was_hung_there_can_be_taken_off_again_and_leaves_nothing():
    first_callback, second_callback = (
        _OnBatch(lambda *_: first_callback.stop(), n=3),
        _OnBatch(lambda *_: second_callback.stop(), n=8),
    )
    fit = make_trainer(callbacks=[first_callback, second_callback], max_epochs=3)
    fit.fit(make_module(), make_loader())
    assert (first_callback.times, second_callback.times, fit.global_step) == (3, 8, 18)
    assert "_on_before_fetch" not in vars(fit.fit_loop.epoch_loop)


class _Fetching(RegressionModule):
    def training_step(self, dataloader_iter: Any) -> torch.Tensor:  # type: ignore[override]
        batch, index, _ = next(dataloader_iter)
        return super().training_step(batch, index)


@pytest.mark.parametrize(("kind", "itself"), [(RegressionModule, False), (_Fetching, True)])
@BOTH_PACKAGES
def test_a_step_that_fetches_its_batches_itself_is_known(lightning: Any, kind: type, itself: bool):
    batches = []

    class _Asks(pl.Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            batches.append(internals.fetches_in_training_step(trainer))

    fit = make_trainer(lightning, callbacks=[_Asks()])
    with pytest.warns(match="dataloader_iter") if itself else nullcontext():
        fit.fit(make_module(lightning, kind), make_loader())
    assert batches == [itself]


@pytest.mark.parametrize(
    ("data", "ahead"),
    [(IndexDataset(8), [0, 0, 0, 0]), (IndexStream(8), [1, 1, 1, 1])],
    ids=["of known length", "of unknown length"],
)
def test_batches_that_lightning_fetches_ahead_are_counted(data: Any, ahead: list[int]):
    counts: list[int] = []
    at = _OnBatch(lambda fit, _: counts.append(internals.count_prefetched_batches(fit)))
    make_trainer(callbacks=[at]).fit(make_module(), DataLoader(data, batch_size=2))
    assert counts == ahead


def test_what_lightning_calls_ready_between_batches_was_handed_to_training():
    calls: list[tuple[int, int]] = []

    def look(fit: Any, _: Any) -> None:
        calls.append((fit.fit_loop._data_fetcher.fetched, fit.fit_loop.epoch_loop.batch_progress.current.ready))

    make_trainer(callbacks=[_OnBatch(look)]).fit(make_module(), make_loader(6))
    assert calls == [(0, 0), (1, 1), (2, 2)]


def test_the_ranks_that_lightnings_launcher_started_are_known():
    launcher = _SubprocessScriptLauncher(LightningEnvironment(), num_processes=2, num_nodes=1)
    running: Any = SimpleNamespace(strategy=SimpleNamespace(launcher=launcher))
    assert internals.list_launched_rank_pids(running) == []
    launcher.procs.append(SimpleNamespace(pid=7))  # type: ignore[arg-type]
    assert internals.list_launched_rank_pids(running) == [7]
    assert internals.list_launched_rank_pids(make_trainer()) == []  # there is no launcher


def test_the_validation_loaders_are_built_where_they_are_asked_for_and_nothing_else_happens():
    events: list[str] = []

    class _Asked(ValidatedRegressionModule):
        def val_dataloader(self) -> Any:
            events.append("built")
            return make_loader(2)

        def on_validation_start(self) -> None:
            events.append("validated")

    def prepare(fit: Any, _: Any) -> None:
        internals.prepare_validation(fit)
        events.append(f"{fit.state.stage.value}, {fit.training}")

    make_trainer(callbacks=[_OnBatch(prepare, n=2)], check_val_every_n_epoch=2, max_epochs=2).fit(
        make_module(kind=_Asked), make_loader(4)
    )
    assert events == ["built", "train, True", "validated"]


@BOTH_PACKAGES
def test_a_strategy_or_a_plugin_that_loads_checkpoints_itself_is_recognized(lightning: Any):
    single_device = lightning.strategies.SingleDeviceStrategy
    strategies = {
        True: [single_device(), lightning.strategies.DDPStrategy()],
        False: [
            type("Own", (single_device,), {"load_checkpoint": lambda *_: {}})(),
            single_device(checkpoint_io=lightning.plugins.AsyncCheckpointIO()),
            lightning.strategies.ModelParallelStrategy(),
        ],
    }
    for expected, group in strategies.items():
        assert [internals.loads_with_torch(SimpleNamespace(strategy=strategy)) for strategy in group] == [  # type: ignore[arg-type]
            expected
        ] * len(group)
