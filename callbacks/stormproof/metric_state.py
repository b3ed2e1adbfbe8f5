"""The running state of torchmetrics inside a module, which a ``state_dict`` leaves out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torchmetrics import Metric, MetricCollection
from torchmetrics.wrappers import MetricTracker

_BESIDE = ("min_val", "max_val", "_num_vals_seen")
"""What MinMaxMetric and Running keep beside the states that they declare."""


def capture(module: torch.nn.Module) -> dict[str, Any]:
    """The state of every metric in ``module``, by its name there.

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
    for collection in module.modules():
        if isinstance(collection, MetricCollection):
            collection.values(copy_state=True)  # torchmetrics 1.3 had what is shared in one of them until asked
    return {
        "tracked": {name: tracker.n_steps for name, tracker in _trackers(module).items()},
        "metrics": {
            name: {
                "state": {key: _copy(value) for key, value in _state(metric).items()},
                "update_count": metric.update_count,
                "forward_cache": metric._forward_cache,
            }
            for name, metric in _metrics(module).items()
        },
    }


def restore(module: torch.nn.Module, state: Mapping[str, Any]) -> None:
    """Sets every metric in ``module`` to its state; a metric that had none is left alone."""
    trackers = _trackers(module)
    for name, steps in state["tracked"].items():
        while trackers[name].n_steps < steps:  # each step is a metric more
            trackers[name].increment()
    metrics = _metrics(module)
    for name, saved in state["metrics"].items():
        metric = metrics[name]
        for key, value in saved["state"].items():
            setattr(metric, key, _moved(value, metric.device))
        metric._update_count = saved["update_count"]
        metric._computed = None
        metric._forward_cache = _moved(saved["forward_cache"], metric.device)


def _state(metric: Metric) -> Mapping[str, Any]:
    return {**metric.metric_state, **{key: value for key, value in vars(metric).items() if key in _BESIDE}}


def _copy(value: Any) -> Any:
    """So that it stays as it is: tensors are added to in their place, lists only get longer."""
    if isinstance(value, list):
        return list(value)
    return value.clone() if isinstance(value, torch.Tensor) else value


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, list):
        return [_moved(item, device) for item in value]
    return value.to(device) if isinstance(value, torch.Tensor) else value


def _metrics(module: torch.nn.Module) -> dict[str, Metric]:
    return {name: child for name, child in module.named_modules() if isinstance(child, Metric)}


def _trackers(module: torch.nn.Module) -> dict[str, MetricTracker]:
    return {name: child for name, child in module.named_modules() if isinstance(child, MetricTracker)}
