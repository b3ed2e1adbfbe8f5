"""The only place that touches private names of Lightning; each has a test that fails when it moves.

What a public hook cannot reach, and an exact resume needs: the whole checkpoint as a dictionary, the progress of the
loops, the epoch means that ``self.log`` is still adding up, and the metrics logged last.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from importlib import import_module
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from torchmetrics import Metric

# Both Lightnings have this module; a trainer of the one must be given classes of the one.
_RESULT = "trainer.connectors.logger_connector.result"

_META = ("fx", "name", "prog_bar", "logger", "on_step", "on_epoch", "enable_graph", "add_dataloader_idx")
_REDUCTIONS = {
    f"{function.__module__}.{function.__name__}": function
    for function in (torch.mean, torch.sum, torch.max, torch.min, sum, max, min)
}
"""All that ``self.log`` takes as ``reduce_fx``; it tells torch's from Python's when it compares."""
_LOGGED = ("_callback_metrics", "_logged_metrics", "_progress_bar_metrics")


def callbacks(trainer: pl.Trainer) -> list[pl.Callback]:
    """All of them. The name is public, but Lightning gives it to the trainer where no type checker sees it."""
    return trainer.callbacks  # type: ignore[attr-defined]


def dump_checkpoint(trainer: pl.Trainer) -> dict[str, Any]:
    """What ``trainer.save_checkpoint`` would write, before it is written."""
    return trainer._checkpoint_connector.dump_checkpoint(weights_only=False)


def call_between_batches(
    trainer: pl.Trainer, function: Callable[[], None], *, last: bool = False
) -> Callable[[], None]:
    """Has ``function`` called before each training batch is fetched, and returns what ends that.

    Lightning starts its profiler there: whatever the batch before brought about is done, and nothing of the next has
    begun, not even its fetching and its transfer to the device. What was asked for last is called first, unless it is
    to be the ``last``, right before the fetching.
    """
    loop = trainer.fit_loop.epoch_loop
    before = loop._on_before_fetch
    if not isinstance(before, _CallAll):
        before = loop._on_before_fetch = _CallAll([before])
    calls = before.functions
    calls.insert(len(calls) - 1 if last else 0, function)

    def stop() -> None:
        calls.remove(function)
        if len(calls) == 1:
            del loop._on_before_fetch

    return stop


class _CallAll:
    def __init__(self, functions: list[Callable[[], None]]) -> None:
        self.functions = functions

    def __call__(self) -> None:
        for function in tuple(self.functions):
            function()


def call_with_loaders(trainer: pl.Trainer, function: Callable[[Any], None]) -> Callable[[], None]:
    """Has ``function`` called with each loader of any stage before it is iterated, and returns what ends that.

    Lightning hands each to the strategy. What it would do to it afterwards, give the workers its seeds, is done first.
    """
    strategy = trainer.strategy
    process = strategy.process_dataloader
    seed_workers = _module_of(trainer, "trainer.connectors.data_connector")._auto_add_worker_init_fn

    def call_both(loader: object) -> object:
        processed = process(loader)
        seed_workers(processed, trainer.global_rank)
        function(processed)
        return processed

    strategy.process_dataloader = call_both  # type: ignore[method-assign]  # this strategy's alone

    def stop() -> None:
        del strategy.process_dataloader

    return stop


def evaluates_in_sequence(trainer: pl.Trainer) -> bool:
    """Whether the validation, test or prediction that goes on takes one loader after the other."""
    loader = trainer._active_loop._combined_loader  # type: ignore[union-attr]  # in a pass there is a loop
    return loader is not None and loader._mode == "sequential"


def gathers_checkpoints(trainer: pl.Trainer) -> bool:
    """Whether the strategy spreads parameters over all ranks, which share the data, and gathers checkpoints on rank 0.

    Lightning's by default spreads them over the devices of a node, each of which then has the same data.
    """
    strategy: Any = trainer.strategy
    if "ModelParallelStrategy" not in {kind.__name__ for kind in type(strategy).__mro__}:
        return False
    mesh = strategy._device_mesh
    shares_data = strategy._tensor_parallel_size == 1 if mesh is None else mesh["tensor_parallel"].size() == 1
    return shares_data and not strategy._save_distributed_checkpoint


def ranks_started_by(trainer: pl.Trainer) -> list[int]:
    """The process numbers of the further ranks that this process started, by Lightning's own launcher."""
    return [process.pid for process in getattr(trainer.strategy.launcher, "procs", [])]


def leave_signals_alone(trainer: pl.Trainer) -> Callable[[], None]:
    """Keeps Lightning from answering signals, until what is returned is called.

    Its handlers save, or talk to the other ranks, inside of the handler, wherever the program is. Nor does rank 0 tell
    the others before each batch whether a signal came: none comes that Lightning would answer.
    """
    connector, loop = trainer._signal_connector, trainer.fit_loop.epoch_loop
    connector.register_signal_handlers = _nothing
    loop._broadcast_sigterm_tensor = _nothing

    def stop() -> None:
        del connector.register_signal_handlers
        del loop._broadcast_sigterm_tensor

    return stop


def call_before_clipping(
    trainer: pl.Trainer, function: Callable[[torch.optim.Optimizer, float, bool], None]
) -> Callable[[], None]:
    """Has ``function(optimizer, clip_val, by_value)`` called before gradients are clipped; returns what ends that.

    It is before whatever leads to ``LightningModule.clip_gradients``: the trainer's ``gradient_clip_val``, a module's
    own ``configure_gradient_clipping``, and a call in manual optimization, which comes before
    ``on_before_optimizer_step``.
    """
    plugin = trainer.precision_plugin
    clip = plugin.clip_gradients

    def call_both(
        optimizer: torch.optim.Optimizer, clip_val: float = 0.0, gradient_clip_algorithm: Any = "norm"
    ) -> None:
        if clip_val > 0:
            function(optimizer, clip_val, gradient_clip_algorithm == "value")
        clip(optimizer, clip_val, gradient_clip_algorithm)

    plugin.clip_gradients = call_both  # type: ignore[method-assign]  # this plugin's alone

    def stop() -> None:
        del plugin.clip_gradients

    return stop


def call_before_the_update(
    trainer: pl.Trainer, function: Callable[[torch.optim.Optimizer], None]
) -> Callable[[], None]:
    """Has ``function(optimizer)`` called once all hooks are done that look at its gradients, and they are clipped.

    Next comes the update, in automatic and manual optimization. Returns what ends that.
    """
    plugin = trainer.precision_plugin
    after_closure = plugin._after_closure

    def call_both(model: pl.LightningModule, optimizer: Any) -> None:
        after_closure(model, optimizer)
        function(optimizer)

    plugin._after_closure = call_both

    def stop() -> None:
        del plugin._after_closure

    return stop


def step_fetches_itself(trainer: pl.Trainer) -> bool:
    """Whether ``training_step`` takes an iterator and fetches its batches: between two of them is inside of it."""
    return type(trainer.fit_loop._data_fetcher).__name__ == "_DataLoaderIterDataFetcher"


def batches_ahead(trainer: pl.Trainer) -> int:
    """Batches that were fetched and are not trained on yet, between two batches."""
    fetcher = trainer.fit_loop._data_fetcher
    assert fetcher is not None
    return fetcher.fetched - trainer.fit_loop.epoch_loop.batch_progress.current.ready


def loops_state(trainer: pl.Trainer) -> dict[str, Any]:
    """The progress of the fit loop and all its children, between two batches."""
    fit_loop = trainer.fit_loop
    progress = fit_loop.state_dict()
    progress["state_dict"].pop("combined_loader", None)  # the loaders' own states are kept for each rank
    return {
        "progress": progress,
        "train_reload_epoch": fit_loop._last_train_dl_reload_epoch,
        "val_reload_epoch": fit_loop.epoch_loop.val_loop._last_val_dl_reload_epoch,
    }


def restore_loops(trainer: pl.Trainer, state: Mapping[str, Any]) -> None:
    """Sets the loops to ``state``, taken between two batches, inside the same place: nothing is a restart any more."""
    fit_loop = trainer.fit_loop
    fit_loop.load_state_dict(state["progress"])
    fit_loop._last_train_dl_reload_epoch = state["train_reload_epoch"]
    fit_loop.epoch_loop.val_loop._last_val_dl_reload_epoch = state["val_reload_epoch"]
    for loop in _with_children(fit_loop):
        loop.on_iteration_done()  # what Lightning itself calls after the first iteration


def give_progress(checkpoint: dict[str, Any]) -> None:
    """Changes a checkpoint taken between two batches so that a plain ``Trainer.fit`` goes on there.

    Lightning knows checkpoints that were saved inside a batch: it adds one to the step that its loggers see, and where
    all counters are equal it takes a validation to be due, for which schedules would then be stepped twice.

    Args:
        checkpoint: what :func:`dump_checkpoint` gave.
    """
    fit_loop = checkpoint["loops"]["fit_loop"]
    fit_loop["epoch_loop.state_dict"]["_batches_that_stepped"] -= 1
    fit_loop["epoch_loop.batch_progress"]["total"]["ready"] += 1


def rescale_batches(fit_loop: dict[str, Any], factor: Fraction) -> None:
    """Changes the counts of batches in the fit loop's progress to those where a step has ``factor`` times as many."""
    progress = fit_loop["epoch_loop.batch_progress"]
    for counts in (progress["total"], progress["current"]):
        counts.update({name: int(count * factor) for name, count in counts.items()})


def give_loaders(checkpoint: dict[str, Any], states: list[Any]) -> None:
    """Sets the states that Lightning hands to the training loaders that have one, in its order."""
    checkpoint["loops"]["fit_loop"]["state_dict"]["combined_loader"] = states


def hand_loaders_their_states(trainer: pl.Trainer) -> None:
    """At the start of the training, hands the training loaders those states that Lightning has kept to itself.

    It does so where the checkpoint is that of an epoch's end, and where somebody asked for
    ``trainer.estimated_stepping_batches`` before it was loaded, as a schedule does: then the loaders had been iterated.
    They would begin with the order of the first epoch again.
    """
    loop = trainer.fit_loop
    if loop._combined_loader_states_to_load and loop._combined_loader is not None:
        loop._combined_loader._load_state_dicts(loop._combined_loader_states_to_load)
        loop._combined_loader_states_to_load = []
        assert loop._data_fetcher is not None
        iter(loop._data_fetcher)


def combining_mode(trainer: pl.Trainer) -> str:
    """How batches of several training loaders are combined, in the words of ``CombinedLoader``."""
    loader = trainer.fit_loop._combined_loader
    assert loader is not None
    return loader._mode


def logged_state(trainer: pl.Trainer) -> dict[str, Any]:
    """The metrics logged last, and the means of the epoch still being added up."""
    connector = trainer._logger_connector
    results = _results(trainer)
    grouped = [key for key, result in results.items() if result.meta.sync.group is not None]
    return {
        "metrics": {name: dict(getattr(connector, name)) for name in _LOGGED},
        "first_loop_iter": connector._first_loop_iter,
        "current_fx": connector._current_fx,
        "results": {key: _result_state(result) for key, result in results.items() if key not in grouped},
        "grouped": grouped,  # a group of processes cannot be saved, and Lightning refuses a value that is without its
    }


def restore_logged(trainer: pl.Trainer, state: Mapping[str, Any]) -> None:
    """Sets them to ``state``."""
    restore_metrics(trainer, state)
    if state["grouped"]:
        rank_zero_warn(
            f"{', '.join(state['grouped'])}, logged with sync_dist_group: this epoch's value counts only what follows, "
            "because a group of processes cannot be saved"
        )
    connector = trainer._logger_connector
    device = trainer.strategy.root_device
    results = _results(trainer)
    results.clear()
    for key, saved in state["results"].items():
        results[key] = _result(trainer, saved, device)
    connector._first_loop_iter = state["first_loop_iter"]
    connector._current_fx = state["current_fx"]


def restore_metrics(trainer: pl.Trainer, state: Mapping[str, Any]) -> None:
    """Sets the metrics logged last to those in ``state``, and leaves the means being added up alone."""
    device = trainer.strategy.root_device
    for name, metrics in state["metrics"].items():
        setattr(trainer._logger_connector, name, {key: _moved(value, device) for key, value in metrics.items()})


def prepare_validation(trainer: pl.Trainer) -> None:
    """Builds the validation loaders now, where they would be built with the first validation."""
    stage = trainer.state.stage
    trainer.validating = True
    trainer.fit_loop.epoch_loop.val_loop.setup_data()
    trainer.state.stage = stage


def _nothing() -> None:
    pass


def _results(trainer: pl.Trainer) -> Any:
    return trainer.fit_loop.epoch_loop._results


def _result_state(result: Any) -> dict[str, Any]:
    meta = result.meta
    state = {
        "meta": {name: getattr(meta, name) for name in (*_META, "dataloader_idx", "metric_attribute")},
        "reduce": f"{meta.reduce_fx.__module__}.{meta.reduce_fx.__name__}",
        "sync": {"should": meta.sync.should, "rank_zero_only": meta.sync.rank_zero_only},
        "has_reset": result.has_reset,
        "forward_cache": result._forward_cache,
    }
    if result.is_tensor:
        state["value"] = result.value
        state["cumulated_batch_size"] = getattr(result, "cumulated_batch_size", None)
        state["update_count"] = result._update_count
    return state


def _result(trainer: pl.Trainer, state: Mapping[str, Any], device: torch.device) -> Any:
    library = _module_of(trainer, _RESULT)
    meta = library._Metadata(**state["meta"], reduce_fx=_REDUCTIONS[state["reduce"]])
    sync = state["sync"]
    meta.sync = library._Sync(_should=sync["should"], fn=trainer.strategy.reduce, rank_zero_only=sync["rank_zero_only"])
    attribute = meta.metric_attribute
    result = library._ResultMetric(meta, attribute is None)
    if attribute is None:
        result.value = _moved(state["value"], device)
        if state["cumulated_batch_size"] is not None:
            result.cumulated_batch_size = _moved(state["cumulated_batch_size"], device)
        result._update_count = state["update_count"]
    else:
        metric = dict(trainer.lightning_module.named_modules())[attribute]
        assert isinstance(metric, Metric)
        result.value = metric
    result._forward_cache = _moved(state["forward_cache"], device)
    result.has_reset = state["has_reset"]
    return result


def _moved(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, torch.Tensor) else value


def _with_children(loop: Any) -> Iterator[Any]:
    yield loop
    base = next(cls for cls in type(loop).__mro__ if cls.__name__ == "_Loop")
    for child in vars(loop).values():
        if isinstance(child, base):
            yield from _with_children(child)


def _module_of(trainer: pl.Trainer, name: str) -> Any:
    package = type(trainer.fit_loop).__module__.rpartition(".loops")[0]  # pytorch_lightning or lightning.pytorch
    full = f"{package}.{name}"
    return sys.modules.get(full) or import_module(full)
