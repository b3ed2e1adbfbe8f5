"""Settings that all runs of a certification share."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from stormproof.replay.command_run import CommandRun, RunningCommands
from stormproof.replay.pause import PausePoint
from stormproof.replay.working_copy import copy_working_folder, move_paths


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of all runs.

    Attributes:
        command: The command.
        resume_command: Command that resumes.
        environment: Environment of the commands.
        source: Working folder of the user.
        output: Output folder of the certification, which is not copied.
        links: Paths that the copies link to instead of copying them.
        every: Only every n-th step is hashed.
        timeout: Seconds without progress after which a command hangs.
        grace_seconds: Seconds between SIGTERM and SIGKILL.
        report: Called with a line for each event.
        running: The started commands.
    """

    command: Sequence[str]
    resume_command: Sequence[str]
    environment: Mapping[str, str]
    source: Path
    output: Path
    links: Sequence[Path] = ()
    every: int = 1
    timeout: float = 60.0
    grace_seconds: float = 10.0
    report: Callable[[str], None] = lambda _: None
    running: RunningCommands = field(default_factory=RunningCommands)

    def copy(self, target: Path) -> None:
        """Copies the working folder of the user."""
        copy_working_folder(self.source, target, output=self.output, links=self.links)

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
        environment = dict(self.environment)
        for name in ("PATH", "PYTHONPATH"):
            if name in environment:
                parts = environment[name].split(os.pathsep)
                environment[name] = os.pathsep.join(move_paths(part, self.source, work) for part in parts)
        command = self.resume_command if resumes else self.command
        run = CommandRun(
            [move_paths(argument, self.source, work) for argument in command],
            work=work,
            ledger=ledger,
            output=output,
            every=1 if resumes else self.every,  # it counts from its own first step
            pauses=pauses,
            environment=environment,
        )
        self.running.add(run)
        return run
