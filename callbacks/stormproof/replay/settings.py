"""Options of a certification, and the settings that all its runs share."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from stormproof.replay.command_run import CommandRun, RunningCommands
from stormproof.replay.faults.fault import FaultKind
from stormproof.replay.pause import PausePoint
from stormproof.replay.working_copy import copy_working_folder, move_paths


@dataclass(frozen=True, slots=True)
class Options:
    """Options of a certification.

    Attributes:
        command: The command and its arguments.
        resume_command: Command that resumes. The same command if empty.
        output: Folder for reports and copies.
        folder: Working folder of the command.
        links: Paths that the copies link to instead of copying them.
        budget: Maximum seconds for faults. If None, the certification takes about four times as long as the
            command, and faults at most ten minutes.
        max_faults: Maximum number of faults.
        kinds: Kinds of faults.
        every: Only every n-th step is compared.
        timeout: Seconds without progress after which a command hangs. If None, five times the longest time without
            progress of the uninterrupted run, at least 30.
        grace_seconds: Seconds between SIGTERM and SIGKILL.
        jobs: Number of runs at the same time. If None, two if the command uses one thread.
        seed: Seed of the places of faults.
        keep: Whether to keep the working folder of the first uninterrupted run.
        environment: Environment of the command.
        report: Called with a line for each event.
    """

    command: tuple[str, ...]
    resume_command: tuple[str, ...] = ()
    output: Path = Path("certify")
    folder: Path = field(default_factory=Path.cwd)
    links: tuple[Path, ...] = ()
    budget: float | None = None
    max_faults: int = 12
    kinds: tuple[FaultKind, ...] = tuple(FaultKind)
    every: int = 1
    timeout: float | None = None
    grace_seconds: float = 10.0
    jobs: int | None = None
    seed: int = 0
    keep: bool = False
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    report: Callable[[str], None] = lambda _: None


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of all runs.

    Attributes:
        options: Options of the certification.
        output: Absolute path of the output folder, which is not copied.
        timeout: Seconds without progress after which a command hangs.
        running: The started commands.
    """

    options: Options
    output: Path
    timeout: float
    running: RunningCommands = field(default_factory=RunningCommands)

    @property
    def source(self) -> Path:
        """Working folder of the user."""
        return self.options.folder.resolve()

    def copy(self, target: Path) -> None:
        """Copies the working folder of the user."""
        copy_working_folder(self.source, target, output=self.output, links=self.options.links)

    def start(
        self, work: Path, ledger: Path, output: Path, *, resumes: bool = False, pauses: Sequence[PausePoint] = ()
    ) -> CommandRun:
        """Starts the command in a copy. Paths of the working folder in its arguments become paths of the copy.

        Args:
            work: The copy.
            ledger: Folder for ledgers.
            output: File for standard output and standard error.
            resumes: Whether to start the command that resumes.
            pauses: Pause points.
        """
        environment = dict(self.options.environment)
        for name in ("PATH", "PYTHONPATH"):
            if name in environment:
                parts = environment[name].split(os.pathsep)
                environment[name] = os.pathsep.join(move_paths(part, self.source, work) for part in parts)
        command = self.options.command
        if resumes and self.options.resume_command:
            command = self.options.resume_command
        run = CommandRun(
            [move_paths(argument, self.source, work) for argument in command],
            work=work,
            ledger=ledger,
            output=output,
            every=1 if resumes else self.options.every,  # it counts from its own first step
            pauses=pauses,
            environment=environment,
        )
        self.running.add(run)
        return run
