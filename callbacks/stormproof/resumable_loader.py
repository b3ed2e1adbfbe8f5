"""A loader that goes on, after a restart, exactly where it was."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from stormproof.data.replicas import replica
from stormproof.data.sources import Position, Source, source_of
from stormproof.errors import NotResumableError
from stormproof.rng import State

REMEMBERED = 8
"""Batches that a state may lie behind; Lightning fetches one or two ahead of the one it trains on."""


def resumable(loader: Any, seed: int | None = None, distributed: bool = True) -> ResumableLoader:
    """A loader with the batches of ``loader`` whose order, position and augmentation resume exactly.

    It has a state that Lightning saves and hands back with the checkpoint. The order of a pass is what the loader's own
    samplers give from generators seeded by (seed, epoch); each sample draws from Python's, NumPy's and torch's
    generators as seeded by (seed, epoch, its position in the pass): so the number of workers changes nothing, and what
    is drawn here is not missed elsewhere. An iterable data set draws from generators seeded by (seed, epoch, worker);
    where it has a ``state_dict`` and no workers it is resumed by that, else its pass is run again up to the batch.

    A data set that draws nothing may say so, by an attribute ``draws_random_numbers = False``, and pays nothing.

    Args:
        loader: any torch DataLoader, or a loader that has ``state_dict`` and ``load_state_dict``. A resumable one is
            given back as it is.
        seed: None: that of ``seed_everything`` where it was called; else torch's initial seed, or 0 on several ranks,
            which must agree.
        distributed: whether to divide the order of a map-style data set among the ranks, where no sampler does.

    Raises:
        TypeError: if ``loader`` is neither.

    Example:
        >>> from torch.utils.data import DataLoader
        >>> loader = resumable(DataLoader(range(6), batch_size=2, shuffle=True), seed=0)
        >>> batches = iter(loader)
        >>> _ = next(batches)
        >>> state = loader.state_dict()
        >>> rest = [batch.tolist() for batch in batches]
        >>> loader.load_state_dict(state)
        >>> rest == [batch.tolist() for batch in loader]
        True
    """
    if isinstance(loader, ResumableLoader):
        return loader
    return ResumableLoader(loader, source_of(loader, distributed), seed)


@dataclass(frozen=True, slots=True)
class _Pass:
    """One ``for`` loop over the loader."""

    epoch: int
    start: State
    length: int | None


@dataclass(frozen=True, slots=True)
class _Mark:
    """A place in a pass: ``batches`` of it were handed out; ``ended`` once there was no more."""

    of: _Pass
    batches: int
    ended: bool = False
    position: Position | None = None

    @property
    def whole(self) -> bool:
        return self.ended or self.batches == self.of.length


class ResumableLoader:
    """What :func:`resumable` returns. Each ``for`` loop over it is a pass, which begins with its first batch.

    Attributes:
        dataset: the user's data set.
        batch_size: samples of a batch; None where a batch sampler decides.
        num_workers: processes that fetch.
    """

    def __init__(self, loader: Any, source: Source, seed: int | None) -> None:
        self.dataset: Any = getattr(loader, "dataset", None)
        self.batch_size: int | None = getattr(loader, "batch_size", None)
        self.num_workers: int = getattr(loader, "num_workers", 0)
        self._loader = loader
        self._source = source
        self._seed = seed
        self._mark: _Mark | None = None  # None before the first pass
        self._behind: deque[_Mark] = deque(maxlen=REMEMBERED)
        self._loaded: State | None = None  # until a pass begins from it

    def __iter__(self) -> Iterator[Any]:
        mark = self._mark = self._next_mark()
        batches = self._source.open(self.seed, mark.of.epoch, mark.batches)
        while True:
            before = replace(mark, position=self._source.position())
            try:
                batch = next(batches)
            except StopIteration:
                self._mark = replace(mark, ended=True)
                return
            self._behind.append(before)
            mark = self._mark = replace(mark, batches=mark.batches + 1)
            yield batch
            if self._mark is not mark:
                raise RuntimeError(
                    f"another pass over this resumable loader began, or a state was loaded, when {mark.batches} "
                    "batches of this one were taken: give each use a loader of its own"
                )

    def __len__(self) -> int:
        return len(self._source)

    @property
    def seed(self) -> int:
        """What fixes the order and the random numbers."""
        if self._seed is None:
            self._seed = _default_seed()
        return self._seed

    def state_dict(self, ahead: int = 0) -> State:
        """Where the loader is, as plain values and tensors; at the end of a pass: where the next begins.

        Args:
            ahead: how many of the batches handed out last are to be handed out again, 0 to 8.

        Raises:
            ValueError: if it handed out fewer since it was made or loaded, or more than it remembers.
        """
        if ahead > len(self._behind):
            raise ValueError(f"ahead is {ahead}; this loader can go back by {len(self._behind)} batches")
        if ahead:
            return self._state_of(self._behind[-ahead])
        if self._loaded is not None:
            return self._loaded
        return self._state_of(replace(self._mark or self._first(), position=self._source.position()))

    def next_pass_state(self) -> State:
        """The state from which the next ``for`` loop begins a pass of its own, wherever this one is."""
        state = self.state_dict()
        return {**state, "ended": True} if state["batches"] else state

    def load_state_dict(self, state: State) -> None:
        """Goes on at ``state`` with the next ``for`` loop.

        Raises:
            NotResumableError: if it belongs to a data set of another length, or to another batch size.
        """
        if "fits" not in state:
            raise NotResumableError(
                f"the state with the keys {sorted(map(str, state))} was not saved by a resumable loader: "
                "wrap the same loaders as in the run that saved it"
            )
        for name, ours in self._fits().items():
            if state["fits"][name] != ours:
                raise NotResumableError(
                    f"the state of the loader was saved with {name} {state['fits'][name]} and this one has {ours}: "
                    "go on with the same data and batches, or begin a new run"
                )
        self._loaded = state
        self._seed = state["seed"]
        self._mark = None
        self._behind.clear()

    def _next_mark(self) -> _Mark:
        if self._loaded is not None:
            state, self._loaded = self._loaded, None
            return self._resumed(state)
        if self._mark is not None:
            return self._after(self._mark.of, None if self._mark.whole else self._mark.batches)
        return self._first()

    def _first(self) -> _Mark:
        return _Mark(_Pass(0, self._source.start(), self._length()), 0)

    def _after(self, earlier: _Pass, taken: int | None) -> _Mark:
        self._source.settle(self.seed, earlier.epoch, earlier.start, taken)
        return _Mark(_Pass(earlier.epoch + 1, self._source.start(), self._length()), 0)

    def _resumed(self, state: State) -> _Mark:
        world_size = self._source.world_size()
        if state["world_size"] != world_size:
            raise NotResumableError(
                f"the state of the loader was saved by {state['world_size']} ranks and this job has {world_size}: "
                "start it with as many"
            )
        self._source.restore(state["start"], state["position"])
        mark = _Mark(_Pass(state["epoch"], state["start"], self._length()), state["batches"])
        if state["ended"]:
            return self._after(mark.of, None if state["whole"] else mark.batches)
        return mark

    def _state_of(self, mark: _Mark) -> State:
        return {
            "seed": self.seed,
            "epoch": mark.of.epoch,
            "batches": mark.batches,
            "whole": mark.whole,
            "ended": mark.whole,
            "start": mark.of.start,
            "position": mark.position and mark.position.plain(),
            "world_size": self._source.world_size(),
            "fits": self._fits(),
        }

    def _fits(self) -> dict[str, Any]:
        sized = hasattr(self.dataset, "__len__")
        return {"samples": len(self.dataset) if sized else None, "batch_size": self.batch_size}

    def _length(self) -> int | None:
        try:
            return len(self)
        except (TypeError, NotImplementedError):
            return None

    @property
    def _iterator(self) -> Any:
        """Where Lightning looks for workers to stop when a fit ends."""
        return getattr(self._source.inner, "_iterator", None)

    @_iterator.setter
    def _iterator(self, none: None) -> None:
        if hasattr(self._source.inner, "_iterator"):
            self._source.inner._iterator = none  # noqa: SLF001 (torch's name, which Lightning sets too)


def inexact(loader: Any) -> list[str]:
    """Why a resume of ``loader`` cannot be exact, one reason each; empty if it is."""
    if isinstance(loader, ResumableLoader):
        return []
    return [f"the position of a {type(loader).__name__} is not kept: wrap it by stormproof.resumable()"]


def _default_seed() -> int:
    if "PL_GLOBAL_SEED" in os.environ:
        return int(os.environ["PL_GLOBAL_SEED"])
    return torch.initial_seed() if replica().world_size == 1 else 0
