"""State of the recorder in this process, shared by its hooks."""

from __future__ import annotations

import functools
import os
import sys
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import torch

from stormproof.replay.ledger import DENSE_STEPS
from stormproof.replay.recorder.ledger_writer import LedgerWriter

_T = TypeVar("_T")


class WeakRegistry(Generic[_T]):
    """Live objects in order of creation, by identity. The objects may be unhashable.

    Attributes:
        added: Number of objects that were ever added.
    """

    def __init__(self) -> None:
        self.added = 0
        self._references: dict[int, weakref.ref[_T]] = {}

    def add(self, value: _T) -> None:
        """Adds an object. An object that is added twice counts once."""
        key = id(value)
        if key not in self._references:
            self.added += 1
            self._references[key] = weakref.ref(value, lambda _: self._references.pop(key, None))

    def __iter__(self) -> Iterator[_T]:
        for reference in list(self._references.values()):
            value = reference()
            if value is not None:
                yield value

    def list_new(self, since: int) -> list[_T]:
        """Returns those live objects that were added after :attr:`added` was ``since``, at most."""
        count = self.added - since
        references = list(self._references.values())[-count:] if count > 0 else []
        return [value for reference in references if (value := reference()) is not None]

    def watch(self, owner: Any, *methods: str) -> None:
        """Adds the instance after each call of the methods of a class, such as ``__init__``."""
        for name in methods:
            original = getattr(owner, name)
            setattr(owner, name, self._wrap(original))

    def _wrap(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def wrapper(self_: Any, *args: Any, **kwargs: Any) -> Any:
            result = original(self_, *args, **kwargs)
            self.add(self_)
            return result

        return wrapper


@dataclass
class Session:
    """State of the recorder.

    Attributes:
        writer: Writes the ledger.
        root: Real path of the working folder of the command.
        every: Only every n-th step of each optimizer is hashed.
        steps: Number of steps of this process, over all optimizers.
        modules: Live modules.
        optimizers: Live optimizers.
        schedulers: Live learning rate schedulers.
        scalers: Live gradient scalers.
        last_loss: Last scalar on which ``backward`` was called since the last step, detached.
    """

    writer: LedgerWriter
    root: str
    every: int
    steps: int = 0
    modules: WeakRegistry[torch.nn.Module] = field(default_factory=WeakRegistry[torch.nn.Module])
    optimizers: WeakRegistry[torch.optim.Optimizer] = field(default_factory=WeakRegistry[torch.optim.Optimizer])
    schedulers: WeakRegistry[Any] = field(default_factory=WeakRegistry[Any])
    scalers: WeakRegistry[Any] = field(default_factory=WeakRegistry[Any])
    last_loss: torch.Tensor | None = None
    _optimizer_steps: dict[int, int] = field(default_factory=dict[int, int])
    _marked: dict[str, int] = field(default_factory=dict[str, int])

    def __post_init__(self) -> None:
        os.register_at_fork(after_in_child=self._reset)

    def _reset(self) -> None:
        self.steps = 0
        self._optimizer_steps.clear()
        self._marked.clear()

    def is_hashed(self, optimizer_index: int, step: int) -> bool:
        """Returns whether a step of an optimizer, from 1, is hashed. Keeps the number for :meth:`is_next_hashed`."""
        self._optimizer_steps[optimizer_index] = step
        return self._is_sampled(step)

    def is_next_hashed(self) -> bool:
        """Returns whether the next step of any optimizer is hashed."""
        steps = self._optimizer_steps.values()
        return self.every == 1 or not steps or any(self._is_sampled(step + 1) for step in steps)

    def _is_sampled(self, step: int) -> bool:
        return step <= DENSE_STEPS or step % self.every == 0

    def mark(self, event: str) -> None:
        """Writes an event at most once between two steps, and only after the first step."""
        if self.steps and self._marked.get(event) != self.steps:
            self._marked[event] = self.steps
            self.writer.write(event, after_step=self.steps)

    def is_below_root(self, path: str) -> bool:
        """Returns whether a real path is in the working folder."""
        return path.startswith(self.root + os.sep)


def is_loader_worker() -> bool:
    """Returns whether this process is a worker of a DataLoader, which has no ledger."""
    worker: Any = sys.modules.get("torch.utils.data._utils.worker")
    return worker is not None and worker._worker_info is not None
