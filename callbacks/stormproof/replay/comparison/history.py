"""The steps of one rank over all processes of a run, numbered without gaps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from stormproof.replay.ledger import Before, Load, ProcessLedger, RecorderError, Save, Step


@dataclass(frozen=True, slots=True)
class History:
    """Events of one rank.

    Attributes:
        steps: Steps, numbered from 1 over all processes of the rank.
        before: State before the first steps of the first process that made a step.
        saves: Saved checkpoints, with paths relative to the working folder.
        loads: Loaded checkpoints before the first step, with relative paths.
        validations: Number of steps before each validation.
        epochs: Number of steps before each start or end of an epoch.
        errors: Failures of the recorder.
        packages: Versions of imported packages.
        ended: Whether the last process exited by itself.
        started: Unix time of the first process.
        hash_algorithms: Algorithms of the hashes.
    """

    steps: tuple[Step, ...] = ()
    before: tuple[Before, ...] = ()
    saves: tuple[Save, ...] = ()
    loads: tuple[Load, ...] = ()
    validations: tuple[int, ...] = ()
    epochs: tuple[int, ...] = ()
    errors: tuple[RecorderError, ...] = ()
    packages: Mapping[str, str] | None = None
    ended: bool = False
    started: float = 0.0
    hash_algorithms: frozenset[str] = frozenset()

    def state_after(self, step: int, optimizer: int) -> Mapping[str, str | int]:
        """Returns the components after an optimizer's latest step up to ``step``, or its initial state.

        Empty if that step was not hashed.
        """
        for candidate in reversed(self.steps[:step]):
            if candidate.optimizer == optimizer:
                return candidate.components if candidate.hashed else {}
        initial = (state.components for state in self.before if state.optimizer == optimizer and state.n > step)
        return next(initial, {})


Histories = Mapping[int, History]
"""Histories by rank."""


def join_processes(processes: Sequence[ProcessLedger]) -> History:
    """Returns the history of one rank.

    Args:
        processes: Ledgers of the rank, sorted by start.
    """
    history = History(started=processes[0].start.time if processes else 0.0)
    for process in processes:
        offset = len(history.steps)
        history = replace(
            history,
            steps=history.steps + tuple(replace(step, n=step.n + offset) for step in process.steps),
            before=history.before or process.before,
            saves=history.saves + tuple(_move_save(save, process, offset) for save in process.saves),
            loads=history.loads + (() if offset else _early_loads(process)),
            validations=history.validations + tuple(n + offset for n in process.validations),
            epochs=history.epochs + tuple(n + offset for n in process.epochs),
            errors=history.errors + process.errors,
            packages={**(history.packages or {}), **process.start.packages},
            ended=process.end is not None,
            hash_algorithms=history.hash_algorithms | {process.start.hash_algorithm},
        )
    return history


def join_ranks(ledgers: Mapping[int, Sequence[ProcessLedger]]) -> dict[int, History]:
    """Returns the history of each rank that made a step, or of rank 0 if none did."""
    histories = {rank: join_processes(processes) for rank, processes in ledgers.items()}
    trained = {rank: history for rank, history in histories.items() if history.steps}
    return trained or {rank: history for rank, history in histories.items() if rank == 0}


def split_processes(
    ledgers: Mapping[int, Sequence[ProcessLedger]], moment: float
) -> tuple[dict[int, list[ProcessLedger]], dict[int, list[ProcessLedger]]]:
    """Returns the ledgers of processes that started before a Unix time, and of processes that started later."""
    earlier, later = dict[int, list[ProcessLedger]](), dict[int, list[ProcessLedger]]()
    for rank, processes in ledgers.items():
        for process in processes:
            (earlier if process.start.time < moment else later).setdefault(rank, []).append(process)
    return earlier, later


def relative_path(path: str, root: str) -> str:
    """Returns a path relative to the working folder, or the path itself if it is elsewhere."""
    return Path(path).relative_to(root).as_posix() if root and Path(path).is_relative_to(root) else path


def saved_steps(saves: Iterable[Save]) -> dict[str, int]:
    """Returns the number of steps in each complete checkpoint file, by path.

    A file that is open at the end is incomplete and omitted. A renamed file or folder keeps its steps.
    """
    steps: dict[str, int] = {}
    for save in saves:
        if save.phase == "open":
            steps.pop(save.path, None)
        elif save.phase == "close":
            steps[save.path] = save.after_step
        else:
            _rename(steps, save)
    return steps


def _rename(steps: dict[str, int], save: Save) -> None:
    steps[save.path] = steps.get(save.source, save.after_step)
    for path in [path for path in steps if path.startswith(f"{save.source}/")]:
        steps[save.path + path.removeprefix(save.source)] = steps[path]


def _move_save(save: Save, process: ProcessLedger, offset: int) -> Save:
    root = process.start.root
    return replace(
        save,
        path=relative_path(save.path, root),
        source=relative_path(save.source, root),
        after_step=save.after_step + offset,
    )


def _early_loads(process: ProcessLedger) -> tuple[Load, ...]:
    root = process.start.root
    return tuple(replace(load, path=relative_path(load.path, root)) for load in process.loads if load.after_step == 0)
