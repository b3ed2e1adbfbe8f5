"""Ledgers of an imaginary training program that saves every ``SAVE_EVERY`` steps and restores all but some state.

Each component is a hash of what it depends on in a real program, so a lost component changes what follows from it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from stormproof.replay.comparison.history import History, join_processes
from stormproof.replay.ledger import Before, Load, ProcessEnd, ProcessLedger, ProcessStart, Save, Step

STEPS, EPOCH, SAVE_EVERY = 24, 8, 3
GENERATORS = ("python", "numpy", "torch")


def digest(*values: object) -> str:
    return hashlib.blake2b(repr(values).encode(), digest_size=8).hexdigest()


@dataclass
class Program:
    """State of the imaginary program. The names of the fields are the names of what can be lost."""

    parameters: str = field(default_factory=lambda: digest("weights"))
    optimizer: str = field(default_factory=lambda: digest("moments", 0))
    scheduler: int = 0
    scaler: int = 1024
    buffers: str = field(default_factory=lambda: digest("statistics"))
    averaged: str = field(default_factory=lambda: digest("average"))
    frozen: str = "00"
    python: str = field(default_factory=lambda: digest("seed", "python"))
    numpy: str = field(default_factory=lambda: digest("seed", "numpy"))
    torch: str = field(default_factory=lambda: digest("seed", "torch"))
    position: int = 0
    sampler_epoch: int = 0
    order: str = ""
    workers: str = ""
    best: float = 9.0
    level: int = 0
    step: int = 0

    def run(self, last: int, *, draws_order: bool, **options: Any) -> list[tuple[Step, Before]]:
        """Trains until step ``last``, counted from the start of the run."""
        first, result = self.step, list[tuple[Step, Before]]()
        while self.step < last:
            if self.position % EPOCH == 0 or not self.order:
                self.order = digest("order", self.torch if draws_order else self.sampler_epoch)
                self.workers = digest("workers", self.torch)
                if options["has_loader"]:
                    self.torch = digest("iterator", self.torch)
            result.append(self._make_step(self.step + 1 - first, **options))
        return result

    def _make_step(
        self, n: int, *, augments_in_workers: bool, loss_input: str, has_loader: bool
    ) -> tuple[Step, Before]:
        before = {"parameters": self.parameters, "optimizer/AdamW": self.optimizer, "averaged": self.averaged}
        before |= {"buffers": self.buffers} if n == 1 else {}
        indices = digest("indices", self.order, self.position % EPOCH)
        batch = digest("batch", indices, self.level, self.workers if augments_in_workers else self.numpy)
        if not augments_in_workers:
            self.numpy = digest(self.numpy)
        extra = getattr(self, loss_input, None)
        loss = digest("loss", batch, self.parameters, self.torch, self.python, self.scaler, extra)
        self.torch, self.python = digest(self.torch), digest(self.python)
        rate = 0.1 * 0.9**self.scheduler
        gradients = digest("gradients", loss, self.frozen)
        components = {
            "data/count": 1, "data/indices": indices, "data/batches": digest([batch]), "loss": loss,
            "gradients": gradients, "learning_rate": repr([rate]), "scheduler/StepLR": digest(self.scheduler),
            "scaler": digest(self.scaler), "frozen": self.frozen, "mode": "train", "hyperparameters": "none",
        }  # fmt: skip
        self.optimizer = digest("moments", self.optimizer, gradients)
        self.parameters = digest("weights", self.parameters, self.optimizer, rate)
        self.buffers = digest("statistics", self.buffers, batch)
        self.averaged = digest("average", self.averaged, self.parameters)
        self.step += 1
        self.position += 1
        self.scaler = 1024 + self.step // 4
        self.scheduler = self.step // 2
        self.best = min(self.best, 9.0 - self.step // 5 if self.step < 12 else 9.0)
        self.level += self.step % 6 == 0
        self.sampler_epoch += self.position % EPOCH == 0
        self.frozen = "01" if self.step >= 4 else self.frozen
        components |= {
            "parameters": self.parameters, "optimizer/AdamW": self.optimizer, "buffers": self.buffers,
            "averaged": self.averaged, "rng/python": self.python, "rng/numpy": self.numpy, "rng/torch": self.torch,
            "rng/workers": self.workers,
        }  # fmt: skip
        values = {"best": self.best, "level": self.level, "step": self.step, "seed": 0, "first_step": self.step - n}
        components |= {f"variables/main.{name}": digest(value) for name, value in values.items()}
        shown = {f"variables/main.{name}": repr(value) for name, value in values.items()}
        if not has_loader:
            of_loader = ("data/", "rng/workers")
            components = {name: value for name, value in components.items() if not name.startswith(of_loader)}
        batches = ((batch,), (indices,)) if has_loader else ((), ())
        return Step(n, 0, float(n), True, components, shown, *batches), Before(n, 0, before)


def run(
    last: int = STEPS,
    *,
    resumed_from: int = 0,
    lost: Collection[str] = (),
    draws_order: bool = False,
    augments_in_workers: bool = False,
    loss_input: str = "",
    has_loader: bool = True,
    rank: int = 0,
    ends: bool = True,
) -> ProcessLedger:
    """Returns the ledger of a process that trains until step ``last``.

    Args:
        last: Last step, counted from the start of the run.
        resumed_from: Step of the checkpoint that the process loads. 0 to start from scratch.
        lost: Fields of ``Program`` that are not restored.
        draws_order: Whether torch's random state determines the order of an epoch.
        augments_in_workers: Whether loader workers draw the augmentation. If not, NumPy does in the main process.
        loss_input: Another field of ``Program`` that the loss depends on.
        has_loader: Whether a loader fetches the batches.
        rank: Rank of the process.
        ends: Whether the process exits by itself.
    """
    program, options = Program(), {"draws_order": draws_order, "augments_in_workers": augments_in_workers}
    options |= {"loss_input": loss_input, "has_loader": has_loader}
    program.run(resumed_from, **options)
    initial = Program()
    program = replace(program, **{name: getattr(initial, name) for name in lost})
    made = program.run(last, **options)
    start = ProcessStart(
        1, 1, rank, 1, ("train.py",), float(resumed_from), root="/folder", packages={"torch": "2.13.0"}
    )
    saves = [
        Save("/folder/last.pt", phase, step - resumed_from, step + moment)
        for step in range(resumed_from + 1, last + 1)
        if step % SAVE_EVERY == 0 and (step < last or ends)
        for phase, moment in (("open", 0.1), ("close", 0.2))
    ]
    return ProcessLedger(
        Path("ledger.jsonl"),
        start,
        steps=tuple(step for step, _ in made),
        before=tuple(before for _, before in made[:3]),
        saves=tuple(saves),
        loads=(Load("/folder/last.pt", 0, 0.0),) if resumed_from else (),
        epochs=tuple(step - resumed_from for step in range(resumed_from, last + 1) if step % EPOCH == 0),
        end=ProcessEnd(None, len(made), 0.0) if ends else None,
    )


def history(last: int = STEPS, **options: Any) -> History:
    """Returns the history of ``run``."""
    return join_processes([run(last, **options)])
