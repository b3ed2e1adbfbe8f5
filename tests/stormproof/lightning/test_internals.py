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
    BOTH,
    LIGHTNINGS_OWN,
    OTHER,
    Numbers,
    Plain,
    Rows,
    Stream,
    Validated,
    loader,
    module,
    trainer,
)

pytestmark = LIGHTNINGS_OWN


class _At(pl.Callback):
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
    found: list[Any] = []

    class _EnoughError(Exception): ...

    def stop(trainer: Any, pl_module: Any) -> None:
        found.append({name: _lookup(trainer, name) for name in NAMES})
        raise _EnoughError

    class _Logs(Validated):
        def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
            loss = super().training_step(batch, batch_idx)
            self.log("loss", loss, on_step=True, on_epoch=True)  # type: ignore[attr-defined]
            return loss

    fit = trainer(lightning, callbacks=[_At(stop, n=2)])
    with pytest.raises(_EnoughError):
        fit.fit(module(lightning, _Logs), loader(), loader())
    return found[0]


MISSING = object()
NAMES = (
    "_checkpoint_connector.dump_checkpoint",
    "_logger_connector._callback_metrics",
    "_logger_connector._logged_metrics",
    "_logger_connector._progress_bar_metrics",
    "_logger_connector._first_loop_iter",
    "_logger_connector._current_fx",
    "fit_loop._data_fetcher.fetched",
    "fit_loop._combined_loader._load_state_dicts",
    "fit_loop._combined_loader_states_to_load",
    "fit_loop._combined_loader._mode",
    "fit_loop._last_train_dl_reload_epoch",
    "fit_loop.epoch_loop.batch_progress.current.ready",
    "fit_loop.epoch_loop._on_before_fetch",
    "fit_loop.epoch_loop._results",
    "fit_loop.epoch_loop._batches_that_stepped",
    "fit_loop.epoch_loop.val_loop._last_val_dl_reload_epoch",
    "fit_loop.epoch_loop.val_loop.setup_data",
    "fit_loop.on_iteration_done",
    "fit_loop.state_dict",
    "fit_loop.load_state_dict",
    "fit_loop.epoch_loop._broadcast_sigterm_tensor",
    "_signal_connector.register_signal_handlers",
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


@pytest.fixture(scope="module", params=[pl, OTHER], ids=["pytorch_lightning", "lightning.pytorch"])
def names(request: pytest.FixtureRequest) -> dict[str, Any]:
    return _inside_a_fit(request.param)


@pytest.mark.parametrize("name", NAMES)
def test_lightning_still_has_the_name(name: str, names: dict[str, Any]):
    assert names[name] is not MISSING, f"trainer.{name} is gone: look for what took its place"


def test_a_logged_value_still_has_the_parts_that_we_save(names: dict[str, Any]):
    result = names["fit_loop.epoch_loop._results"]["training_step.loss"]
    parts = {"value", "cumulated_batch_size", "_update_count", "_forward_cache", "has_reset", "is_tensor", "meta"}
    assert [part for part in sorted(parts) if not hasattr(result, part)] == []
    known = {*logged_metrics._META, "dataloader_idx", "metric_attribute", "reduce_fx", "_sync"}
    assert set(vars(result.meta)) == known, "what self.log is told has other parts: save the new ones too"
    assert set(vars(result.meta.sync)) == {"fn", "_should", "rank_zero_only", "_op", "_group", "_fn"}
    assert set(result.metric_state) == {"value", "cumulated_batch_size"}


@BOTH
def test_loaders_of_every_stage_are_shown_before_they_are_iterated_with_lightnings_own_seeds(
    lightning: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PL_SEED_WORKERS", "1")
    shown: list[tuple[str, bool]] = []

    def show(each: Any) -> None:
        shown.append((type(each).__name__, each.worker_init_fn is not None))

    fit = trainer(lightning, num_sanity_val_steps=0)
    stop = internals.call_with_loaders(fit, show)
    train, val = loader(), loader(2)
    fit.fit(module(lightning, Validated), train, val)
    stop()
    fit.validate(fit.lightning_module, loader(2), verbose=False)
    assert shown == [("DataLoader", True), ("DataLoader", True)]
    assert "process_dataloader" not in vars(fit.strategy)


@BOTH
def test_lightning_answers_no_signal_until_it_is_let(lightning: Any):
    fit = trainer(lightning)
    before = signal.getsignal(signal.SIGTERM)
    stop = internals.leave_signals_alone(fit)
    seen: list[Any] = []

    def look(*_: Any) -> None:
        seen.append(signal.getsignal(signal.SIGTERM))

    fit.callbacks.append(type("Look", (lightning.Callback,), {"on_train_start": look})())
    fit.fit(module(lightning), loader())
    stop()
    fit.fit_loop.max_epochs = 2
    fit.fit(fit.lightning_module, loader())
    assert seen[0] is before
    assert seen[1] is not before


@BOTH
def test_a_dump_is_what_the_trainer_would_save(lightning: Any, tmp_path: Path):
    fit = trainer(lightning)
    fit.fit(module(lightning, Validated), loader(), loader())
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


@BOTH
def test_between_batches_is_after_all_of_the_one_and_before_the_fetching_of_the_next(lightning: Any):
    events: list[str] = []

    class _Steps(Plain):
        def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            events.append("moved")
            return batch

        def on_train_batch_end(self, *args: Any) -> None:
            events.append("module's batch ends")

    between = _At(lambda *_: events.append("between"))
    data = Numbers(4, seen=lambda index: events.append(f"fetched {index}"))
    fit = trainer(lightning, callbacks=[between, _Journal(events)], max_epochs=2)
    fit.fit(module(lightning, _Steps), DataLoader(data, batch_size=2))
    first, second = ["fetched 0", "fetched 1", "moved"], ["fetched 2", "fetched 3", "moved"]
    batch = ["batch begins", "batch ends", "module's batch ends"]
    epoch = ["epoch begins", "between", *first, *batch, "between", *second, *batch, "epoch ends"]
    assert events == [*epoch, *epoch]


def test_between_batches_is_after_the_validation_that_the_batch_brought_about():
    events: list[str] = []
    fit = trainer(callbacks=[_At(lambda *_: events.append("between")), _Journal(events)], val_check_interval=2)
    fit.fit(module(kind=Validated), loader(8), loader(2))
    batch = ["between", "batch begins", "batch ends"]
    assert events == ["epoch begins", *(2 * [*batch, *batch, "validated"]), "epoch ends"]


def test_between_batches_the_schedules_and_the_loggers_are_done_too():
    seen: list[tuple[float, int]] = []
    rows = Rows()

    class _Scheduled(Plain):
        def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
            self.log("step", float(batch_idx))  # type: ignore[attr-defined]
            return super().training_step(batch, batch_idx)

        def configure_optimizers(self) -> Any:
            optimizer = super().configure_optimizers()
            schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / 2**step)
            return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    def look(fit: Any, _: Any) -> None:
        seen.append((fit.optimizers[0].param_groups[0]["lr"], len(rows.rows)))

    trainer(callbacks=[_At(look)], logger=rows, log_every_n_steps=1).fit(module(kind=_Scheduled), loader(6))
    assert seen == [(0.1, 0), (0.05, 1), (0.025, 2)]


def test_what_was_hung_there_can_be_taken_off_again_and_leaves_nothing():
    at, other = _At(lambda *_: at.stop(), n=3), _At(lambda *_: other.stop(), n=8)
    fit = trainer(callbacks=[at, other], max_epochs=3)
    fit.fit(module(), loader())
    assert (at.times, other.times, fit.global_step) == (3, 8, 18)
    assert "_on_before_fetch" not in vars(fit.fit_loop.epoch_loop)


class _Fetching(Plain):
    def training_step(self, dataloader_iter: Any) -> torch.Tensor:  # type: ignore[override]
        batch, index, _ = next(dataloader_iter)
        return super().training_step(batch, index)


@pytest.mark.parametrize(("kind", "itself"), [(Plain, False), (_Fetching, True)])
@BOTH
def test_a_step_that_fetches_its_batches_itself_is_known(lightning: Any, kind: type, itself: bool):
    found = []

    class _Asks(pl.Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            found.append(internals.step_fetches_itself(trainer))

    fit = trainer(lightning, callbacks=[_Asks()])
    with pytest.warns(match="dataloader_iter") if itself else nullcontext():
        fit.fit(module(lightning, kind), loader())
    assert found == [itself]


@pytest.mark.parametrize(
    ("data", "ahead"),
    [(Numbers(8), [0, 0, 0, 0]), (Stream(8), [1, 1, 1, 1])],
    ids=["of known length", "of unknown length"],
)
def test_batches_that_lightning_fetches_ahead_are_counted(data: Any, ahead: list[int]):
    counts: list[int] = []
    at = _At(lambda fit, _: counts.append(internals.batches_ahead(fit)))
    trainer(callbacks=[at]).fit(module(), DataLoader(data, batch_size=2))
    assert counts == ahead


def test_what_lightning_calls_ready_between_batches_was_handed_to_training():
    seen: list[tuple[int, int]] = []

    def look(fit: Any, _: Any) -> None:
        seen.append((fit.fit_loop._data_fetcher.fetched, fit.fit_loop.epoch_loop.batch_progress.current.ready))

    trainer(callbacks=[_At(look)]).fit(module(), loader(6))
    assert seen == [(0, 0), (1, 1), (2, 2)]


def test_the_ranks_that_lightnings_launcher_started_are_known():
    launcher = _SubprocessScriptLauncher(LightningEnvironment(), num_processes=2, num_nodes=1)
    running: Any = SimpleNamespace(strategy=SimpleNamespace(launcher=launcher))
    assert internals.ranks_started_by(running) == []
    launcher.procs.append(SimpleNamespace(pid=7))  # type: ignore[arg-type]
    assert internals.ranks_started_by(running) == [7]
    assert internals.ranks_started_by(trainer()) == []  # there is no launcher


def test_the_validation_loaders_are_built_where_they_are_asked_for_and_nothing_else_happens():
    events: list[str] = []

    class _Asked(Validated):
        def val_dataloader(self) -> Any:
            events.append("built")
            return loader(2)

        def on_validation_start(self) -> None:
            events.append("validated")

    def prepare(fit: Any, _: Any) -> None:
        internals.prepare_validation(fit)
        events.append(f"{fit.state.stage.value}, {fit.training}")

    trainer(callbacks=[_At(prepare, n=2)], check_val_every_n_epoch=2, max_epochs=2).fit(module(kind=_Asked), loader(4))
    assert events == ["built", "train, True", "validated"]


@BOTH
@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_all_that_ask_for_it_are_called_after_loading_until_they_stop(
    order: tuple[int, int], lightning: Any, tmp_path: Path
):
    fit = trainer(lightning)
    fit.fit(module(lightning), loader())
    fit.save_checkpoint(tmp_path / "x.ckpt")
    called: list[tuple[str, bool | None]] = []
    stops = [
        internals.call_after_loading(fit, lambda _, weights_only, name=name: called.append((name, weights_only)))
        for name in "ab"
    ]
    fit.strategy.load_checkpoint(tmp_path / "x.ckpt", weights_only=True)
    stops[order[0]]()
    fit.strategy.load_checkpoint(tmp_path / "x.ckpt")
    stops[order[1]]()
    fit.strategy.load_checkpoint(tmp_path / "x.ckpt")
    assert called == [("a", True), ("b", True), ("ab"[order[1]], None)]
    assert "load_checkpoint" not in vars(fit.strategy)
