"""A loader that goes on, after a restart, exactly where it was."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset

from stormproof.data.caveats import doubts
from stormproof.data.position import LoadedPosition, Pass, Place
from stormproof.data.rng import State
from stormproof.data.sampler_state import is_stateful
from stormproof.data.shard import replica
from stormproof.data.source import Source, source_of
from stormproof.distributed.fork_safety import make_forks_safe
from stormproof.errors import NotResumableError

REMEMBERED = 8
"""Batches that a state may lie behind; Lightning fetches one or two ahead of the one it trains on."""


def resumable(loader: Any, seed: int | None = None, distributed: bool = True, padded: bool = True) -> ResumableLoader:
    """A loader with the samples of ``loader`` whose order, position and augmentation resume exactly.

    Shuffling and augmentation use their own random numbers, so a shuffled loader yields other batches than without
    ``resumable``. With the same resumable loader, adding Stormproof's callbacks leaves the result bit-identical.

    It has a state that Lightning saves and hands back with the checkpoint. The order of a pass is what the loader's own
    samplers give from generators seeded by (seed, epoch); each sample draws from Python's, NumPy's and torch's
    generators as seeded by (seed, epoch, its position in the pass): so the number of workers changes nothing, and what
    is drawn here is not missed elsewhere. An iterable data set draws from generators seeded by (seed, epoch, worker);
    where it has a ``state_dict`` and no workers it is resumed by that, else its pass is run again up to the batch.

    A data set that draws nothing may say so, by an attribute ``draws_random_numbers = False``, and pays nothing.

    Samplers are asked for some batches at once, ahead of their use. What they remember from pass to pass is resumed:
    generators, numbers and words among their attributes, all of it where they have a ``state_dict``.

    Args:
        loader: any torch DataLoader, or a loader that has ``state_dict`` and ``load_state_dict``. A resumable one is
            given back as it is.
        seed: None: that of ``seed_everything`` where it was called; else torch's initial seed, or 0 on several ranks,
            which must agree. Loaders used side by side draw the same numbers unless each has a seed of its own.
        distributed: whether to divide the order of a map-style data set among the ranks, where no sampler does.
        padded: whether the ranks then have as many samples each, for which some samples come twice, as torch's
            DistributedSampler has it. False: each comes once, as the numbers of an evaluation want it, and the ranks
            have as many batches still: the last ones of some have a sample less, or, of batches of one, two samples.

    Raises:
        TypeError: if ``loader`` is neither.
        ValueError: if ``loader`` cannot be divided without ``padded``: it has a batch sampler of its own, or a sampler
            that divides.

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
    return ResumableLoader(loader, source_of(loader, distributed, padded), seed)


def inexact(loader: Any) -> list[str]:
    """Returns the reasons why a resume of ``loader`` may not be exact, each with what to do.

    Args:
        loader: what is handed to ``fit``, resumable or not.

    Example:
        >>> from torch.utils.data import DataLoader
        >>> print(*inexact(DataLoader([1, 2, 3])))  # doctest: +NORMALIZE_WHITESPACE
        its DataLoader does not save its position and random state: pass resumable(loader), or CheckpointRecovery(...,
        wrap_loaders=True)
        >>> inexact(resumable(DataLoader([1, 2, 3])))
        []
    """
    if isinstance(loader, ResumableLoader):
        return doubts(loader.wrapped)
    kind = type(loader).__name__
    if is_stateful(loader):
        return [f"its {kind} does not save its random state: {_WRAP}"]
    if isinstance(loader, DataLoader):
        return [f"its {kind} does not save its position and random state: {_WRAP}"]
    return [f"its {kind} does not save its position: pass a torch DataLoader, wrapped with resumable(loader)"]


_WRAP = "pass resumable(loader), or CheckpointRecovery(..., wrap_loaders=True)"


class ResumableLoader:
    """What :func:`resumable` returns. Each ``for`` loop over it is a pass, which begins with its first batch.

    Attributes:
        dataset: the user's data set.
        batch_size: samples of a batch; None where a batch sampler decides.
        num_workers: processes that fetch.
        wrapped: the user's loader.
    """

    def __init__(self, loader: Any, source: Source, seed: int | None) -> None:
        self.dataset: Any = getattr(loader, "dataset", None)
        self.batch_size: int | None = getattr(loader, "batch_size", None)
        self.num_workers: int = getattr(loader, "num_workers", 0)
        self.wrapped: Any = loader
        self._source = source
        self._seed = seed
        self._place: Place | None = None  # None before the first pass
        self._behind: deque[Place] = deque(maxlen=REMEMBERED)
        self._loaded: State | None = None  # until a pass begins from it
        self._asked = False  # for a pass that has not begun

    def __iter__(self) -> Iterator[Any]:
        self._asked = True
        return _Batches(self._batches())

    def _batches(self) -> Iterator[Any]:
        place = self._next_place()
        make_forks_safe()
        batches = self._source.open(self.seed, place.of.epoch, place.batches)
        place = self._place = replace(place, here=place.here or self._source.position())
        while True:
            self._asked = False
            try:
                batch = next(batches)
            except StopIteration:
                self._place = replace(place, ended=True)
                return
            self._behind.append(place)
            place = self._place = Place(place.of, place.batches + 1, self._source.position(), place.here)
            yield batch
            if self._place is not place:
                raise RuntimeError(
                    f"another pass over this resumable loader began, or a state was loaded, after {place.batches} "
                    "batches of this one: give each use a loader of its own"
                )

    def __len__(self) -> int:
        return len(self._source)

    @property
    def seed(self) -> int:
        """What fixes the order and the random numbers."""
        if self._seed is None:
            self._seed = default_seed()
        return self._seed

    def state_dict(self, ahead: int = 0, asked_only: bool = False) -> State:
        """Where the loader is, as plain values and tensors; at the end of a pass: where the next begins.

        Args:
            ahead: how many of the batches handed out last are to be handed out again, 0 to 8.
            asked_only: where the next begins only once it was asked for. Beside a longer loader, a pass that has ended
                may have to stay so.

        Raises:
            ValueError: if it handed out fewer since it was made or loaded, or more than it remembers.
        """
        if ahead > len(self._behind):
            raise ValueError(f"ahead is {ahead}; this loader can go back by {len(self._behind)} batches")
        if ahead:
            return self._state_of(self._behind[-ahead])
        if self._loaded is not None:
            return self._loaded
        place = self._place or self._first()
        asked = self._asked and self._place is not None
        return self._state_of(place, left=asked or (place.whole and not asked_only))

    def next_pass_state(self) -> State:
        """The state from which the next ``for`` loop begins a pass of its own, wherever this one is."""
        if self._loaded is not None:
            return {**self._loaded, "ended": True} if self._loaded["batches"] else self._loaded
        return self.state_dict() if self._place is None else self._state_of(self._place, left=True)

    def load_state_dict(self, state: State) -> None:
        """Goes on at ``state`` with the next ``for`` loop.

        One that another number of ranks saved is the place behind the samples that they had taken together.

        Raises:
            NotResumableError: if it belongs to a data set of another length, or, of as many ranks, another batch size.
        """
        if "fits" not in state:
            raise NotResumableError(
                f"the state with the keys {sorted(map(str, state))} was not saved by a resumable loader: "
                "wrap the same loaders as in the run that saved it"
            )
        for name, ours in self._fits().items():
            saved = state["fits"].get(name)
            if saved != ours and (name != "batch_size" or state["world_size"] == self._source.world_size()):
                raise NotResumableError(
                    f"the state of the loader was saved with {name} {saved} and this one has {ours}: "
                    "go on with the same data and batches, or begin a new run"
                )
        self._loaded = state
        self._seed = state["seed"]
        self._place = None
        self._behind.clear()

    def _next_place(self) -> Place:
        if self._loaded is not None:
            place = self._resumed(self._loaded)
            self._loaded = None
            return place
        return self._first() if self._place is None else self._after(self._place)

    def _first(self) -> Place:
        return Place(Pass(0, self._source.start(), _length(self)), 0)

    def _after(self, left: Place) -> Place:
        earlier = left.of
        self._source.settle(self.seed, earlier.epoch, earlier.start, None if left.whole else left.batches)
        after = replace(left, of=replace(earlier, after=None))  # not all passes back to the first
        return Place(Pass(earlier.epoch + 1, self._source.start(), _length(self), after), 0)

    def _resumed(self, state: State) -> Place:
        if state["world_size"] != self._source.world_size():
            state = {**state, "batches": self._batches_here(state)}
        saved = state["position"]
        self._source.restore(state["start"], saved)
        length = state["batches"] if state["whole"] else _length(self)
        place = Place(Pass(state["epoch"], state["start"], length), state["batches"], saved and LoadedPosition(saved))
        return self._after(place) if state["ended"] else place

    def _batches_here(self, state: State) -> int:
        """How many batches of this many ranks have the samples that were taken by another number of them."""
        ranks = self._source.world_size()
        if state["whole"]:
            return _length(self) or state["batches"]
        if not state["batches"]:
            return 0
        if state["position"] is not None or isinstance(self.dataset, IterableDataset):
            raise NotResumableError(
                f"the state of the loader was saved by {state['world_size']} ranks and this job has {ranks}, and the "
                "place in an iterable data set is each rank's own: start it with as many"
            )
        taken = state["batches"] * state["world_size"] * (state["fits"]["batch_size"] or 1)
        batches, over = divmod(taken, ranks * (self.batch_size or 1))
        if over:
            raise NotResumableError(
                f"the loader had given {taken} samples to {state['world_size']} ranks, which are no whole batches of "
                f"{self.batch_size or 1} for {ranks}: choose another batch size, or as many ranks"
            )
        return batches

    def _state_of(self, place: Place, left: bool = False) -> State:
        if place.batches == 0 and place.of.after is not None and not place.ended:
            return self._state_of(place.of.after, left=True)
        again = place.before is not None and (left or place.batches > 1)
        position = place.before if again else place.here
        return {
            "seed": self.seed,
            "epoch": place.of.epoch,
            "batches": place.batches,
            "whole": place.whole,
            "ended": left,
            "start": place.of.start,
            "position": position and position.plain(int(again)),
            "world_size": self._source.world_size(),
            "fits": self._fits(),
        }

    def _fits(self) -> dict[str, Any]:
        fits = {"samples": _length(self.dataset), "batch_size": self.batch_size}
        if isinstance(self.dataset, IterableDataset):  # each worker yields batches of its own
            fits["num_workers"] = self.num_workers
        return fits

    @property
    def loaders_with_workers(self) -> list[Any]:
        """The user's loader, and the one behind it, which is made from it once or each pass anew."""
        return [self.wrapped, self._source.inner]

    @property
    def _iterator(self) -> Any:
        """Where Lightning looks for workers to stop when a fit ends."""
        return getattr(self._source.inner, "_iterator", None)

    @_iterator.setter
    def _iterator(self, none: None) -> None:
        if hasattr(self._source.inner, "_iterator"):
            self._source.inner._iterator = none  # noqa: SLF001 (torch's name, which Lightning sets too)


class _Batches:
    """The batches of one pass. A copy, as in a deep copy of a trainer, has none: the original owns the pass."""

    def __init__(self, batches: Iterator[Any]) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        return next(self._batches)

    def __reduce__(self) -> tuple[Any, ...]:
        return iter, ((),)


def _length(of: Any) -> int | None:
    try:
        return len(of)
    except (TypeError, NotImplementedError):
        return None


def default_seed() -> int:
    """Returns the seed of loaders that have none of their own."""
    if "PL_GLOBAL_SEED" in os.environ:
        return int(os.environ["PL_GLOBAL_SEED"])
    return torch.initial_seed() if replica().world_size == 1 else 0
