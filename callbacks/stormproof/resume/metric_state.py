"""Captures and restores the states of torchmetrics, which a ``state_dict`` omits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from torchmetrics import Metric, MetricCollection
from torchmetrics.utilities import dim_zero_cat, dim_zero_max, dim_zero_mean, dim_zero_min, dim_zero_sum
from torchmetrics.wrappers import MetricTracker

Modules = Mapping[str, torch.nn.Module]
_NO_MODULES: Modules = MappingProxyType({})
_UNDECLARED_STATES = ("min_val", "max_val", "_num_vals_seen")
"""Attributes of MinMaxMetric and Running that they do not declare with ``add_state``."""


def capture(module: torch.nn.Module, extra_modules: Modules = _NO_MODULES) -> dict[str, Any]:
    """Returns the state of every metric, by name.

    Args:
        module: Module whose submodules include metrics.
        extra_modules: Further such modules by path, for example of plain lists and of callbacks.

    Example:
        >>> from torchmetrics import MeanMetric
        >>> module = torch.nn.ModuleDict({"mean": MeanMetric()})
        >>> module["mean"].update(torch.tensor([1.0, 2.0]))
        >>> state = capture(module)
        >>> fresh = torch.nn.ModuleDict({"mean": MeanMetric()})
        >>> restore(fresh, state)
        >>> fresh["mean"].compute()
        tensor(1.5000)
    """
    for collection in _named_modules(module, extra_modules).values():
        if isinstance(collection, MetricCollection):
            collection.values(copy_state=True)  # torchmetrics 1.3 copies states shared in a group only on request
    return {
        "tracked": {name: tracker.n_steps for name, tracker in _find_trackers(module, extra_modules).items()},
        "metrics": {
            name: {
                "state": {key: _copy_value(value) for key, value in _collect_state(metric).items()},
                "update_count": metric.update_count,
                "forward_cache": metric._forward_cache,
            }
            for name, metric in _find_metrics(module, extra_modules).items()
        },
    }


def restore(module: torch.nn.Module, state: Mapping[str, Any], extra_modules: Modules = _NO_MODULES) -> None:
    """Sets every metric to its state. Leaves a metric without a saved state unchanged.

    Warns about saved metrics that do not exist in this run.
    """
    trackers = _find_trackers(module, extra_modules)
    for name in state["tracked"].keys() & trackers:
        while trackers[name].n_steps < state["tracked"][name]:  # each step adds one metric
            trackers[name].increment()
    metrics = _find_metrics(module, extra_modules)
    missing_names = sorted(state["metrics"].keys() - metrics)
    if missing_names:
        rank_zero_warn(
            f"The checkpoint contains metrics that do not exist in this run: {', '.join(missing_names)}. They are "
            "ignored."
        )
    for name in state["metrics"].keys() & metrics:
        metric, saved_state = metrics[name], state["metrics"][name]
        for key, value in saved_state["state"].items():
            setattr(metric, key, _move_to_device(value, metric.device))
        metric._update_count = saved_state["update_count"]
        metric._computed = None
        metric._forward_cache = _move_to_device(saved_state["forward_cache"], metric.device)


def merge(
    module: torch.nn.Module,
    rank_states: Sequence[Mapping[str, Any]],
    is_rank_zero: bool,
    extra_modules: Modules = _NO_MODULES,
) -> dict[str, Any]:
    """Merges the metric states of all ranks into the state of one rank after a change of the world size.

    Rank 0 gets the sums and concatenations, and all other ranks are reset. Every rank gets maxima, minima and means. A
    metric with another reduction is reset, with a warning.

    Args:
        module: Module with the same metrics.
        rank_states: States of all ranks from :func:`capture`.
        is_rank_zero: Whether to return the state of rank 0.
        extra_modules: Further modules, as for :func:`capture`.
    """
    merged_states: dict[str, Any] = {}
    reset_names = []
    for name, metric in _find_metrics(module, extra_modules).items():
        states = [entry["metrics"][name] for entry in rank_states if name in entry["metrics"]]
        if not states:
            continue
        if any(reduction not in _MERGE_FUNCTIONS for reduction in metric._reductions.values()):
            reset_names += [name] if max(entry["update_count"] for entry in states) else []
            state = {key: _copy_value(value) for key, value in metric._defaults.items()}
            merged_states[name] = {**states[0], "state": state, "update_count": 0}
            continue
        values = {key: [entry["state"][key] for entry in states] for key in metric._defaults}
        merged_values = {key: _merge_values(metric, key, entry, is_rank_zero) for key, entry in values.items()}
        undeclared_values = {key: value for key, value in states[0]["state"].items() if key not in merged_values}
        merged_states[name] = {**states[0], "state": {**undeclared_values, **merged_values}}
    if reset_names:
        rank_zero_warn(
            f"These metrics cannot be merged after a change of the world size and are reset: {', '.join(reset_names)}. "
            "This epoch's values count only the remaining batches."
        )
    return {"tracked": rank_states[0]["tracked"], "metrics": merged_states}


def _merge_values(metric: Metric, key: str, values: Sequence[Any], is_rank_zero: bool) -> Any:
    merge_function, is_for_all_ranks = _MERGE_FUNCTIONS[metric._reductions[key]]
    if not (is_rank_zero or is_for_all_ranks):
        return _copy_value(metric._defaults[key])
    return merge_function(values)


def _concatenate(values: Sequence[Any]) -> Any:
    if isinstance(values[0], list):
        return [item for value in values for item in value]
    return torch.cat(list(values))


_MERGE_FUNCTIONS: dict[Any, tuple[Callable[[Sequence[Any]], Any], bool]] = {
    dim_zero_sum: (lambda values: torch.stack(list(values)).sum(0), False),
    dim_zero_cat: (_concatenate, False),
    dim_zero_mean: (lambda values: torch.stack(list(values)).mean(0), True),
    dim_zero_max: (lambda values: torch.stack(list(values)).amax(0), True),
    dim_zero_min: (lambda values: torch.stack(list(values)).amin(0), True),
}
"""Function that merges the values of all ranks, and whether all ranks get the result, by torchmetrics' reduction."""


def _collect_state(metric: Metric) -> Mapping[str, Any]:
    return {**metric.metric_state, **{key: value for key, value in vars(metric).items() if key in _UNDECLARED_STATES}}


def _copy_value(value: Any) -> Any:
    """Copies a value. Metrics modify tensors in place, but only append to lists."""
    if isinstance(value, list):
        return list(value)
    return value.clone() if isinstance(value, torch.Tensor) else value


def _move_to_device(value: Any, device: torch.device) -> Any:
    if isinstance(value, list):
        return [_move_to_device(item, device) for item in value]
    return value.to(device) if isinstance(value, torch.Tensor) else value


def _find_metrics(module: torch.nn.Module, extra_modules: Modules) -> dict[str, Metric]:
    return {name: child for name, child in _named_modules(module, extra_modules).items() if isinstance(child, Metric)}


def _find_trackers(module: torch.nn.Module, extra_modules: Modules) -> dict[str, MetricTracker]:
    return {
        name: child for name, child in _named_modules(module, extra_modules).items() if isinstance(child, MetricTracker)
    }


def _named_modules(module: torch.nn.Module, extra_modules: Modules) -> dict[str, torch.nn.Module]:
    modules = dict(module.named_modules())
    for path, extra_module in extra_modules.items():
        modules |= extra_module.named_modules(prefix=path)
    return modules
