"""The running state of torchmetrics, which a ``state_dict`` omits."""

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
_NONE: Modules = MappingProxyType({})
_BESIDE = ("min_val", "max_val", "_num_vals_seen")
"""What MinMaxMetric and Running keep beside the states that they declare."""


def capture(module: torch.nn.Module, others: Modules = _NONE) -> dict[str, Any]:
    """Returns the state of every metric, by name.

    Args:
        module: Module whose submodules include metrics.
        others: Further such modules by path, for example of plain lists and of callbacks.

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
    for collection in _named(module, others).values():
        if isinstance(collection, MetricCollection):
            collection.values(copy_state=True)  # torchmetrics 1.3 had what is shared in one of them until asked
    return {
        "tracked": {name: tracker.n_steps for name, tracker in _trackers(module, others).items()},
        "metrics": {
            name: {
                "state": {key: _copy(value) for key, value in _state(metric).items()},
                "update_count": metric.update_count,
                "forward_cache": metric._forward_cache,
            }
            for name, metric in _metrics(module, others).items()
        },
    }


def restore(module: torch.nn.Module, state: Mapping[str, Any], others: Modules = _NONE) -> None:
    """Sets every metric to its state. Leaves a metric without a saved state unchanged.

    Warns about saved metrics that do not exist in this run.
    """
    trackers = _trackers(module, others)
    for name in state["tracked"].keys() & trackers:
        while trackers[name].n_steps < state["tracked"][name]:  # each step is a metric more
            trackers[name].increment()
    metrics = _metrics(module, others)
    lost = sorted(state["metrics"].keys() - metrics)
    if lost:
        rank_zero_warn(f"the checkpoint contains metrics that do not exist in this run: {', '.join(lost)}")
    for name in state["metrics"].keys() & metrics:
        metric, saved = metrics[name], state["metrics"][name]
        for key, value in saved["state"].items():
            setattr(metric, key, _moved(value, metric.device))
        metric._update_count = saved["update_count"]
        metric._computed = None
        metric._forward_cache = _moved(saved["forward_cache"], metric.device)


def merged(
    module: torch.nn.Module, everyone: Sequence[Mapping[str, Any]], first: bool, others: Modules = _NONE
) -> dict[str, Any]:
    """What the ranks of a job had together, as the state of one of another number of ranks.

    What is added up over the ranks goes to the first, and the others begin anew; a largest, smallest or mean value goes
    to all. A metric that is reduced in a way of its own begins anew, with a warning.

    Args:
        module: has the same metrics.
        everyone: the states of all ranks, each from :func:`capture`.
        first: whether it is for rank 0.
        others: as for :func:`capture`.
    """
    found: dict[str, Any] = {}
    anew = []
    for name, metric in _metrics(module, others).items():
        states = [each["metrics"][name] for each in everyone if name in each["metrics"]]
        if not states:
            continue
        if any(reduction not in _TOGETHER for reduction in metric._reductions.values()):
            anew += [name] if max(each["update_count"] for each in states) else []
            state = {key: _copy(value) for key, value in metric._defaults.items()}
            found[name] = {**states[0], "state": state, "update_count": 0}
            continue
        values = {key: [each["state"][key] for each in states] for key in metric._defaults}
        together = {key: _merged(metric, key, each, first) for key, each in values.items()}
        beside = {key: value for key, value in states[0]["state"].items() if key not in together}
        found[name] = {**states[0], "state": {**beside, **together}}
    if anew:
        rank_zero_warn(
            f"{', '.join(anew)} cannot be put together from another number of ranks, and counts only what follows"
        )
    return {"tracked": everyone[0]["tracked"], "metrics": found}


def _merged(metric: Metric, key: str, values: Sequence[Any], first: bool) -> Any:
    together, goes_to_all = _TOGETHER[metric._reductions[key]]
    if not (first or goes_to_all):
        return _copy(metric._defaults[key])
    return together(values)


def _concatenated(values: Sequence[Any]) -> Any:
    if isinstance(values[0], list):
        return [item for value in values for item in value]
    return torch.cat(list(values))


_TOGETHER: dict[Any, tuple[Callable[[Sequence[Any]], Any], bool]] = {
    dim_zero_sum: (lambda values: torch.stack(list(values)).sum(0), False),
    dim_zero_cat: (_concatenated, False),
    dim_zero_mean: (lambda values: torch.stack(list(values)).mean(0), True),
    dim_zero_max: (lambda values: torch.stack(list(values)).amax(0), True),
    dim_zero_min: (lambda values: torch.stack(list(values)).amin(0), True),
}
"""How the ranks' values are put together, by torchmetrics' name for it, and whether all ranks get the whole."""


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


def _metrics(module: torch.nn.Module, others: Modules) -> dict[str, Metric]:
    return {name: child for name, child in _named(module, others).items() if isinstance(child, Metric)}


def _trackers(module: torch.nn.Module, others: Modules) -> dict[str, MetricTracker]:
    return {name: child for name, child in _named(module, others).items() if isinstance(child, MetricTracker)}


def _named(module: torch.nn.Module, others: Modules) -> dict[str, torch.nn.Module]:
    named = dict(module.named_modules())
    for path, other in others.items():
        named |= other.named_modules(prefix=path)
    return named
