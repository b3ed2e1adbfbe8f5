"""The ledger of a training run: what the recorder writes, and how to read it.

Every process that makes an optimizer step, or that saves or loads a checkpoint, writes one file of JSON lines into the
folder that :data:`FOLDER_VARIABLE` names. One line is one event. A killed process leaves a ledger without
:attr:`ProcessLedger.end`, and perhaps an incomplete last line, which the reader ignores.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

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
            parsed.setdefault(event["event"], []).append(_PARSERS[event["event"]](event))
    ends = parsed.pop("end", [])
    fields = {_FIELDS[name]: tuple(values) for name, values in parsed.items()}
    return ProcessLedger(path, start, end=ends[-1] if ends else None, **fields)


def _read_events(path: Path) -> Iterator[dict[str, Any]]:
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines[:-1], start=1):  # what follows the last line break is incomplete
        try:
            event = json.loads(line)
        except ValueError as error:
            yield {"event": "recorder_error", "where": f"line {number}", "message": f"ValueError: {error}"}
        else:
            yield event


def _parse_start(event: dict[str, Any]) -> ProcessStart:
    return ProcessStart(
        version=event["version"],
        pid=event["pid"],
        rank=event["rank"],
        world_size=event["world_size"],
        argv=tuple(event["argv"]),
        time=event["time"],
        hash_algorithm=event["hash"],
        root=event["root"],
        every=event["every"],
        packages=event["packages"],
    )


def _parse_step(event: dict[str, Any]) -> Step:
    return Step(
        n=event["n"],
        optimizer=event["optimizer"],
        time=event["time"],
        hashed=event["hashed"],
        components=event["components"],
        values={f"variables/{name}": text for name, text in event.get("values", {}).items()},
        batches=tuple(event.get("batches", ())),
        indices=tuple(event.get("indices", ())),
    )


def _parse_save(event: dict[str, Any]) -> Save:
    return Save(event["path"], event["phase"], event["after_step"], event["time"], event.get("from", ""))


def _parse_after_step(event: dict[str, Any]) -> int:
    return event["after_step"]


_PARSERS: Mapping[str, Callable[[dict[str, Any]], object]] = {
    "before": lambda event: Before(event["n"], event["optimizer"], event["components"]),
    "step": _parse_step,
    "save": _parse_save,
    "load": lambda event: Load(event["path"], event["after_step"], event["time"]),
    "validation": _parse_after_step,
    "epoch": _parse_after_step,
    "recorder_error": lambda event: RecorderError(event["where"], event["message"]),
    "end": lambda event: ProcessEnd(event["exit"], event["steps"], event["time"]),
}
_FIELDS = {
    "before": "before",
    "step": "steps",
    "save": "saves",
    "load": "loads",
    "validation": "validations",
    "epoch": "epochs",
    "recorder_error": "errors",
}
