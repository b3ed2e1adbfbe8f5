"""The ledger of a training run: what the recorder writes, and how to read it.

Every process that makes an optimizer step, or that saves or loads a checkpoint, writes one file of JSON lines into the
folder that :data:`FOLDER_VARIABLE` names. One line is one event. A killed process leaves a ledger without
:attr:`ProcessLedger.end`, and perhaps an incomplete last line, which the reader ignores.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from operator import itemgetter
from pathlib import Path
from typing import Any, TypeVar

FOLDER_VARIABLE = "STORMPROOF_LEDGER"
"""Environment variable with the folder for ledgers. The recorder is off without it."""
EVERY_VARIABLE = "STORMPROOF_LEDGER_EVERY"
"""Environment variable with n: only every n-th step of each optimizer is hashed. Default: 1."""
ROOT_VARIABLE = "STORMPROOF_LEDGER_ROOT"
"""Environment variable with the working folder of the command. Default: the current folder at the start.

Only files below it are recorded, and only code below it is the user's code.
"""
VERSION = 1
"""Version of the file format."""
CALLBACK = "callback "
"""Prefix of the class of a framework's callback in the name of a variable. A checkpoint should contain its state."""
BEFORE_STEPS = 3
"""Number of steps at the start of a process whose state is also recorded before the step."""
DENSE_STEPS = 10
"""Number of first steps of each optimizer that are always hashed, whatever the value of :data:`EVERY_VARIABLE`."""
BOOTSTRAP_FOLDER = Path(__file__).parent / "recorder" / "bootstrap"
"""Folder that must be the first entry of PYTHONPATH. Its ``sitecustomize`` installs the recorder."""


Components = Mapping[str, str | int]
"""Component names and their values: a hash of 16 hex digits, numbers as text, or a count."""


@dataclass(frozen=True, slots=True)
class ProcessStart:
    """The process that wrote a ledger.

    Attributes:
        version: Version of the file format, :data:`VERSION`.
        pid: Process ID.
        rank: Rank in the job, 0 without one.
        world_size: Number of ranks, 1 without a job.
        argv: The command, as in ``sys.argv``.
        time: Unix time at which the process started, in seconds.
        hash_algorithm: ``xxh3_64`` or ``blake2b``. Hashes of different algorithms are not comparable.
        root: Real path of the working folder.
        every: Only every n-th step of each optimizer is hashed.
        packages: Versions of the imported packages, by module name.
    """

    version: int
    pid: int
    rank: int
    world_size: int
    argv: tuple[str, ...]
    time: float
    hash_algorithm: str = ""
    root: str = ""
    every: int = 1
    packages: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, slots=True)
class Before:
    """State before one of the first :data:`BEFORE_STEPS` steps of a process.

    Attributes:
        n: Number of the step that follows, from 1.
        optimizer: Index of its optimizer.
        components: State before the step.
    """

    n: int
    optimizer: int
    components: Components


@dataclass(frozen=True, slots=True)
class Step:
    """One optimizer step.

    Attributes:
        n: Number of the step in this process, from 1, over all optimizers.
        optimizer: Index of the optimizer, in the order of their first steps.
        time: Unix time at the end of the step, in seconds.
        hashed: Whether the state was hashed. If not, only cheap components are recorded.
        components: Inputs and results of the step, and state after the step.
        values: Short text of the components ``variables/…``, under their full names.
        batches: Hash of each batch since the last step, in order of fetching. ``data/batches`` is their hash.
        indices: Hash of the sampler's indices of each batch, in the same order. Empty without a sampler.
    """

    n: int
    optimizer: int
    time: float
    hashed: bool
    components: Components
    values: Mapping[str, str] = field(default_factory=dict[str, str])
    batches: tuple[str, ...] = ()
    indices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Save:
    """An event of a checkpoint file or of a folder of torch.distributed.checkpoint.

    Attributes:
        path: Real path.
        phase: ``open`` before the first byte, ``close`` when the file is complete, ``replace`` after a rename or copy.
        after_step: Number of steps of this process before the event.
        time: Unix time, in seconds.
        source: Former path of a file that was renamed or copied, else empty.
    """

    path: str
    phase: str
    after_step: int
    time: float
    source: str = ""


@dataclass(frozen=True, slots=True)
class Load:
    """A checkpoint, or another file with tensors, that was loaded.

    Attributes:
        path: Real path.
        after_step: Number of steps of this process before the event.
        time: Unix time, in seconds.
    """

    path: str
    after_step: int
    time: float


@dataclass(frozen=True, slots=True)
class RecorderError:
    """A part of the ledger that could not be recorded.

    Attributes:
        where: Hook of the recorder, or line of the file.
        message: Type and message of the exception.
    """

    where: str
    message: str


@dataclass(frozen=True, slots=True)
class ProcessEnd:
    """Exit of the interpreter.

    Attributes:
        exit: 1 after an uncaught exception, else None: the exit code is unknown.
        steps: Number of steps of this process.
        time: Unix time, in seconds.
    """

    exit: int | None
    steps: int
    time: float


@dataclass(frozen=True, slots=True)
class ProcessLedger:
    """Events of one process, in order.

    Attributes:
        path: File of the ledger.
        start: The process.
        steps: Optimizer steps.
        before: State before the first steps.
        saves: Saved checkpoints.
        loads: Loaded checkpoints.
        validations: Number of steps before each validation.
        epochs: Number of steps before each end or start of an epoch of a training loader.
        errors: Parts that could not be recorded.
        end: Exit of the interpreter. None if the process was killed or is still running.
    """

    path: Path
    start: ProcessStart
    steps: tuple[Step, ...] = ()
    before: tuple[Before, ...] = ()
    saves: tuple[Save, ...] = ()
    loads: tuple[Load, ...] = ()
    validations: tuple[int, ...] = ()
    epochs: tuple[int, ...] = ()
    errors: tuple[RecorderError, ...] = ()
    end: ProcessEnd | None = None


_Event = TypeVar("_Event", ProcessStart, Before, Step, Save, Load, RecorderError, ProcessEnd)


def read_ledgers(folder: Path) -> dict[int, tuple[ProcessLedger, ...]]:
    """Returns the ledgers in a folder by rank. The processes of a rank are sorted by their start.

    Args:
        folder: Value of :data:`FOLDER_VARIABLE`. A folder that does not exist has no ledgers.
    """
    ledgers: dict[int, list[ProcessLedger]] = {}
    for path in sorted(folder.glob("*.jsonl")):
        ledger = read_ledger(path)
        if ledger is not None:
            ledgers.setdefault(ledger.start.rank, []).append(ledger)
    return {
        rank: tuple(sorted(processes, key=lambda ledger: (ledger.start.time, ledger.path.name)))
        for rank, processes in sorted(ledgers.items())
    }


def read_ledger(path: Path) -> ProcessLedger | None:
    """Returns the ledger of one process, or None if the file has no complete first line.

    A line that is not valid becomes an entry of :attr:`ProcessLedger.errors`. Unknown events and fields are ignored.

    Raises:
        ValueError: If the file has another format or version.
    """
    events = list(_read_events(path))
    if not events:
        return None
    first = events[0]
    if first.get("event") != "start" or first.get("version") != VERSION:
        raise ValueError(f"`{path}` is not a ledger of version {VERSION}. Delete it and record the run again.")
    start = _parse_start(first)
    parsed: dict[str, list[Any]] = {}
    for event in events[1:]:
        if event["event"] == "packages":
            start = replace(start, rank=event["rank"], world_size=event["world_size"], packages=event["packages"])
        elif event["event"] in _PARSERS:
            name, parse = _PARSERS[event["event"]]
            parsed.setdefault(name, []).append(parse(event))
    ends = parsed.pop("end", [None])
    return ProcessLedger(path, start, end=ends[-1], **{name: tuple(events) for name, events in parsed.items()})


def _read_events(path: Path) -> Iterator[dict[str, Any]]:
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines[:-1], start=1):  # what follows the last line break is incomplete
        try:
            event = json.loads(line)
        except ValueError as error:
            yield {"event": "recorder_error", "where": f"line {number}", "message": f"ValueError: {error}"}
        else:
            yield event


def _build(event_type: type[_Event], event: Mapping[str, Any], **converted: Any) -> _Event:
    """Returns an event with the fields that the line has. Other fields of the line are ignored."""
    values = {**event, **converted}
    return event_type(**{name: values[name] for name in event_type.__dataclass_fields__ if name in values})


def _parse_start(event: Mapping[str, Any]) -> ProcessStart:
    return _build(ProcessStart, event, argv=tuple(event["argv"]), hash_algorithm=event["hash"])


def _parse_step(event: Mapping[str, Any]) -> Step:
    values = {f"variables/{name}": text for name, text in event.get("values", {}).items()}
    batches, indices = tuple(event.get("batches", ())), tuple(event.get("indices", ()))
    return _build(Step, event, values=values, batches=batches, indices=indices)


_PARSERS: Mapping[str, tuple[str, Callable[[Mapping[str, Any]], object]]] = {
    "before": ("before", lambda event: _build(Before, event)),
    "step": ("steps", _parse_step),
    "save": ("saves", lambda event: _build(Save, event, source=event.get("from", ""))),
    "load": ("loads", lambda event: _build(Load, event)),
    "validation": ("validations", itemgetter("after_step")),
    "epoch": ("epochs", itemgetter("after_step")),
    "recorder_error": ("errors", lambda event: _build(RecorderError, event)),
    "end": ("end", lambda event: _build(ProcessEnd, event)),
}
"""Attribute of :class:`ProcessLedger` and parser by event."""
