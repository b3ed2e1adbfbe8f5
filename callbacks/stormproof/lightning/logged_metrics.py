"""Captures and restores logged metrics and unfinished epoch means. Uses private attributes of Lightning, too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from torchmetrics import Metric

from stormproof.lightning import internals

_RESULT_MODULE = "trainer.connectors.logger_connector.result"

_METADATA_FIELDS = ("fx", "name", "prog_bar", "logger", "on_step", "on_epoch", "enable_graph", "add_dataloader_idx")
_REDUCTIONS = {
    f"{function.__module__}.{function.__name__}": function
    for function in (torch.mean, torch.sum, torch.max, torch.min, sum, max, min)
}
"""Functions that ``self.log`` accepts as ``reduce_fx``. It distinguishes torch's from Python's."""
_METRIC_ATTRIBUTES = ("_callback_metrics", "_logged_metrics", "_progress_bar_metrics")


def add_callback_metrics(trainer: pl.Trainer, values: Mapping[str, float]) -> None:
    """Adds ``values`` to ``trainer.callback_metrics``.

    The property of this name first computes the epoch means of all other metrics, which may synchronize the ranks.
    """
    metrics = {name: torch.tensor(value) for name, value in values.items()}
    trainer._logger_connector._callback_metrics.update(metrics)


def capture_logged(trainer: pl.Trainer) -> dict[str, Any]:
    """Returns the metrics logged last and the unfinished means of the epoch."""
    connector = trainer._logger_connector
    results = _get_results(trainer)
    grouped_keys = [key for key, result in results.items() if result.meta.sync.group is not None]
    return {
        "metrics": {name: dict(getattr(connector, name)) for name in _METRIC_ATTRIBUTES},
        "first_loop_iter": connector._first_loop_iter,
        "current_fx": connector._current_fx,
        "results": {key: _capture_result(result) for key, result in results.items() if key not in grouped_keys},
        # a process group cannot be saved, and Lightning refuses a value without its process group
        "grouped": grouped_keys,
    }


def restore_logged(trainer: pl.Trainer, state: Mapping[str, Any]) -> None:
    """Restores the state from :func:`capture_logged`."""
    restore_metrics(trainer, state)
    if state["grouped"]:
        rank_zero_warn(
            f"This epoch's values of {', '.join(state['grouped'])} count only the remaining batches, because a process "
            "group (sync_dist_group) cannot be saved."
        )
    connector = trainer._logger_connector
    device = trainer.strategy.root_device
    results = _get_results(trainer)
    results.clear()
    for key, result_state in state["results"].items():
        results[key] = _restore_result(trainer, result_state, device)
    connector._first_loop_iter = state["first_loop_iter"]
    connector._current_fx = state["current_fx"]


def restore_metrics(trainer: pl.Trainer, state: Mapping[str, Any]) -> None:
    """Restores only the metrics logged last, and leaves the unfinished means unchanged."""
    device = trainer.strategy.root_device
    for name, metrics in state["metrics"].items():
        setattr(
            trainer._logger_connector, name, {key: _move_to_device(value, device) for key, value in metrics.items()}
        )


def _get_results(trainer: pl.Trainer) -> Any:
    return trainer.fit_loop.epoch_loop._results


def _capture_result(result: Any) -> dict[str, Any]:
    meta = result.meta
    state = {
        "meta": {name: getattr(meta, name) for name in (*_METADATA_FIELDS, "dataloader_idx", "metric_attribute")},
        "reduce": f"{meta.reduce_fx.__module__}.{meta.reduce_fx.__name__}",
        "sync": {"should": meta.sync.should, "rank_zero_only": meta.sync.rank_zero_only},
        "has_reset": result.has_reset,
        "forward_cache": result._forward_cache,
    }
    if result.is_tensor:
        state["value"] = result.value
        state["cumulated_batch_size"] = getattr(result, "cumulated_batch_size", None)
        state["update_count"] = result._update_count
        state["is_double"] = result._defaults["value"].dtype == torch.float64  # created with precision="64-true"
    return state


def _restore_result(trainer: pl.Trainer, state: Mapping[str, Any], device: torch.device) -> Any:
    result_module = internals.import_submodule(trainer, _RESULT_MODULE)
    meta = result_module._Metadata(**state["meta"], reduce_fx=_REDUCTIONS[state["reduce"]])
    sync = state["sync"]
    meta.sync = result_module._Sync(
        _should=sync["should"], fn=trainer.strategy.reduce, rank_zero_only=sync["rank_zero_only"]
    )
    attribute = meta.metric_attribute
    result = result_module._ResultMetric(meta, attribute is None)
    if attribute is None:
        if state.get("is_double"):
            result._defaults["value"] = result._defaults["value"].double()
        result.value = _move_to_device(state["value"], device)
        if state["cumulated_batch_size"] is not None:
            result.cumulated_batch_size = _move_to_device(state["cumulated_batch_size"], device)
        result._update_count = state["update_count"]
    else:
        metric = dict(trainer.lightning_module.named_modules())[attribute]
        assert isinstance(metric, Metric)
        result.value = metric
    result._forward_cache = _move_to_device(state["forward_cache"], device)
    result.has_reset = state["has_reset"]
    return result


def _move_to_device(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, torch.Tensor) else value
