"""What tracing has found of a network, as plain values: one that is compiled cannot be traced again when it resumes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from stormproof.units.functional_trace import Positions
from stormproof.units.hooks import Watches
from stormproof.units.watch_point import Feed


def found(watches: Watches) -> dict[str, Any]:
    """What has been found."""
    feeds = [
        [watch.name, watch.function, watch.mixed, turn, {**vars(feed), "positions": _plain(feed.positions)}]
        for watch in watches.inputs.values()
        for turn, feed in watch.feeds.items()
    ]
    chains = [
        [*place, consumers and {name: _plain(positions) for name, positions in consumers.items()}]
        for place, consumers in watches.chains.items()
    ]
    origins = [
        [watch.name, last, before, dimension]
        for watch in watches.outputs.values()
        for last, (before, dimension) in watch.origins.items()
    ]
    return {"feeds": feeds, "chains": chains, "origins": origins}


def know(watches: Watches, state: Mapping[str, Any]) -> None:
    """Has ``watches`` know what :func:`found` gave, of the same network."""
    for name, last, before, dimension in state["origins"]:
        if name in watches.outputs:
            watches.outputs[name].origins[last] = before, dimension
    for name, function, mixed, turn, feed in state["feeds"]:
        if name in watches.inputs:
            watches.inputs[name].function, watches.inputs[name].mixed = function, mixed
            watches.inputs[name].feeds[turn] = Feed(**{**feed, "positions": _positions(feed["positions"])})
    for name, before, consumers in state["chains"]:
        watches.chains[name, before] = consumers and {each: _positions(lie) for each, lie in consumers.items()}


def _plain(positions: Positions) -> list[list[int]] | None:
    return None if positions is None else positions.tolist()


def _positions(plain: list[list[int]] | None) -> Positions:
    return None if plain is None else torch.tensor(plain)
