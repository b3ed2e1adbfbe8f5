"""A loader that goes on, after a restart, exactly where it was."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader

from stormproof.data.map_style import MapStyle
from stormproof.data.replicas import replica
from stormproof.errors import NotResumableError
from stormproof.rng import State

REMEMBERED = 8
"""Batches that a state may lie behind; Lightning fetches one or two ahead of the one it trains on."""


class Source(Protocol):
    """Passes over data that can begin anywhere: of a map-style loader, an iterable one, or a stateful one."""

    inner: Any

    def __len__(self) -> int: ...
    def world_size(self) -> int:
        """How many processes share a pass."""
        ...

    def start(self) -> State:
        """What a pass finds, before it begins."""
        ...

    def position(self) -> Any:
        """Where the pass is, as far as the count of its batches does not say; None if it does."""
        ...

    def restore(self, start: State, position: State | None) -> None:
        """Goes back to what :meth:`start` and :meth:`position` gave."""
        ...

    def open(self, seed: int, epoch: int, skip: int) -> Iterator[Any]:
        """The batches of a pass from the ``skip``-th on; draws nothing from the process' generators."""
        ...

    def settle(self, seed: int, epoch: int, start: State, taken: int | None) -> None:
        """Leaves everything as a pass leaves it of which ``taken`` batches were taken; None: all."""
        ...


@dataclass(frozen=True, slots=True)
class _Pass:
    """One ``for`` loop over the loader."""

    epoch: int
    start: State
    length: int | None


@dataclass(frozen=True, slots=True)
class _Mark:
    """A place in a pass: ``batches`` of it were taken; ``ended`` if there was no more."""

    of: _Pass
    batches: int
    ended: bool = False
    position: Any = None

    @property
    def whole(self) -> bool:
        return self.ended or self.batches == self.of.length


def resumable(loader: Any, seed: int | None = None, distributed: bool = True) -> ResumableLoader:
    """A loader with the batches of ``loader`` whose order, position and augmentation resume exactly.

    Args:
        loader: any torch DataLoader; a resumable one is given back as it is.
        seed: fixes the order of each pass and the random numbers of each sample. None: that of
            ``seed_everything`` if it was called, else torch's own, and 0 on several ranks, which must agree.
        distributed: whether to divide the batches among the ranks, where no sampler does so itself.

    Raises:
        TypeError: if ``loader`` is no DataLoader.

    Example:
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
    if not isinstance(loader, DataLoader):
        raise TypeError(f"resumable takes a torch DataLoader, not a {type(loader).__name__}: wrap that into one")
    return ResumableLoader(loader, MapStyle(loader, distributed), seed)


class ResumableLoader:
    """What :func:`resumable` returns: Lightning takes it for a loader of its own kind, with a state.

    Each ``for`` loop over it is one pass; it begins when its first batch is asked for.

    Attributes:
        dataset: the user's data set.
        batch_size: samples of a batch; None where a batch sampler decides.
        num_workers: processes that fetch.
    """

    def __init__(self, loader: Any, source: Source, seed: int | None) -> None:
        self.dataset: Any = getattr(loader, "dataset", None)
        self.batch_size = getattr(loader, "batch_size", None)
        self.num_workers = getattr(loader, "num_workers", 0)
        self._source = source
        self._seed = seed
        self._mark: _Mark | None = None  # None before the first pass
        self._history: deque[_Mark] = deque(maxlen=REMEMBERED)
        self._resumed: State | None = None  # loaded, and no pass begun since

    def __iter__(self) -> Iterator[Any]:
        this = self._begin()
        batches = self._source.open(self.seed, this.of.epoch, this.batches)
        while True:
            if self._mark is None or self._mark.of is not this.of:
                raise RuntimeError(
                    "a second pass over this resumable loader began before the first ended: "
                    "give each use (training, validation) a resumable loader of its own"
                )
            before = self._placed(self._mark)
            self._history.append(before)
            try:
                batch = next(batches)
            except StopIteration:
                self._mark = _Mark(this.of, before.batches, ended=True)
                return
            self._mark = _Mark(this.of, before.batches + 1)
            yield batch

    def __len__(self) -> int:
        return len(self._source)

    @property
    def seed(self) -> int:
        """What fixes the order and the random numbers."""
        if self._seed is None:
            self._seed = _default_seed()
        return self._seed

    def state_dict(self, ahead: int = 0) -> State:
        """Where the loader is; after the end of a pass, the beginning of the next.

        Args:
            ahead: how many of the batches that were handed out should be handed out again, 0 to 8.

        Returns:
            Plain values and tensors.

        Raises:
            ValueError: if ``ahead`` is more than is remembered.
        """
        if ahead > len(self._history):
            raise ValueError(f"ahead is {ahead}; this loader can go back {len(self._history)} batches")
        if ahead:
            return self._state_of(self._history[-ahead])
        if self._resumed is not None:
            return self._resumed
        return self._state_of(self._placed(self._mark or self._unbegun()))

    def next_pass_state(self) -> State:
        """The state from which the next ``for`` loop begins a pass of its own, wherever this one is."""
        state = self.state_dict()
        fresh = self._mark is None and self._resumed is None
        return state if fresh else {**state, "ended": True}

    def load_state_dict(self, state: State) -> None:
        """Goes on at ``state`` with the next ``for`` loop.

        Raises:
            NotResumableError: if it is that of another data set or batch size.
        """
        for name, (theirs, ours) in _differences(state["fits"], self._fits()).items():
            raise NotResumableError(
                f"the checkpoint was made by a loader with {name} {theirs}, this one has {ours}: "
                "resume with the same data and settings, or begin a new run"
            )
        self._resumed = state
        self._seed = state["seed"]
        self._history.clear()
        self._mark = None

    def _begin(self) -> _Mark:
        """Opens the books of the pass that follows, or of the one to be continued."""
        mark = self._resume() if self._resumed is not None else self._following()
        self._mark = mark
        return mark

    def _resume(self) -> _Mark:
        state, self._resumed = self._resumed, None
        assert state is not None
        world_size = self._source.world_size()
        if state["world_size"] != world_size:
            raise NotResumableError(
                f"the checkpoint was made by {state['world_size']} ranks, this run has {world_size}: "
                "resume with the same number"
            )
        self._source.restore(state["start"], state["position"])
        mark = _Mark(_Pass(state["epoch"], state["start"], self._length()), state["batches"])
        if not state["ended"]:
            return mark
        return self._after(mark.of, None if state["whole"] else mark.batches)

    def _following(self) -> _Mark:
        mark = self._mark
        if mark is None:
            return self._unbegun()
        return self._after(mark.of, None if mark.whole else mark.batches)

    def _after(self, earlier: _Pass, taken: int | None) -> _Mark:
        self._source.settle(self.seed, earlier.epoch, earlier.start, taken)
        return _Mark(_Pass(earlier.epoch + 1, self._source.start(), self._length()), 0)

    def _unbegun(self) -> _Mark:
        return _Mark(_Pass(0, self._source.start(), self._length()), 0)

    def _placed(self, mark: _Mark) -> _Mark:
        return _Mark(mark.of, mark.batches, mark.ended, self._source.position())

    def _length(self) -> int | None:
        try:
            return len(self)
        except (TypeError, NotImplementedError):
            return None

    def _state_of(self, mark: _Mark) -> State:
        return {
            "seed": self.seed,
            "epoch": mark.of.epoch,
            "batches": mark.batches,
            "whole": mark.whole,
            "ended": mark.whole,
            "start": mark.of.start,
            "position": mark.position,
            "world_size": self._source.world_size(),
            "fits": self._fits(),
        }

    def _fits(self) -> dict[str, Any]:
        sized = hasattr(self.dataset, "__len__")
        return {"samples": len(self.dataset) if sized else None, "batch_size": self.batch_size}


def _differences(theirs: dict[str, Any], ours: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    return {name: (value, ours.get(name)) for name, value in theirs.items() if value != ours.get(name)}


def _default_seed() -> int:
    if "PL_GLOBAL_SEED" in os.environ:
        return int(os.environ["PL_GLOBAL_SEED"])
    return torch.initial_seed() if replica().world_size == 1 else 0
