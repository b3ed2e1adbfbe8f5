"""Runs attempts of a command one after another, injects their faults, and restarts the command after each fault."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import psutil

from stormproof.replay.certification import NO_TIME
from stormproof.replay.command_run import POLL_SECONDS, CommandRun, Ending
from stormproof.replay.comparison.checkpoints import checkpoints_at_fault
from stormproof.replay.comparison.history import Histories, join_ranks, split_processes
from stormproof.replay.comparison.variables import is_variable
from stormproof.replay.comparison.verdict import Outcome, VerdictKind, judge
from stormproof.replay.faults.fault import Fault, FaultKind
from stormproof.replay.faults.schedule import MIN_COMPARED_STEPS, Attempt, Timing, steps_to_compare
from stormproof.replay.ledger import read_ledgers
from stormproof.replay.output_text import last_lines
from stormproof.replay.pause import PausedProcess
from stormproof.replay.settings import Settings
from stormproof.replay.working_copy import copy_files

STEPS_AFTER_DIFFERENCE = 3
FIRST_CHECK_SECONDS = 0.5
"""Time between two comparisons of a running restart with the uninterrupted run, at least."""


@dataclass(frozen=True, slots=True)
class Trial:
    """A fault and what followed.

    Attributes:
        fault: The fault.
        outcome: Runs before and after the fault. None if the fault did not occur.
        reason: Why it did not occur.
        seconds: Duration of the restarted command.
        step: Number of steps before the fault.
    """

    fault: Fault
    outcome: Outcome | None = None
    reason: str = ""
    seconds: float = 0.0
    step: int = 0


@dataclass(frozen=True, slots=True)
class _Frozen:
    """Files of a fault."""

    fault: Fault
    work: Path
    attempt: Histories


@dataclass(slots=True)
class LaneRun:
    """Attempts of one lane in progress.

    Attributes:
        settings: Settings of all runs.
        folder: Folder for copies and ledgers.
        reference: The uninterrupted run.
        timing: Its times.
        deadline: Value of ``time.monotonic()`` after which no fault is started.
        min_trials: Number of faults to inject even after the deadline.
        trials: Results.
        uninterrupted: Ledger folder of an uninterrupted attempt, once it has ended.
    """

    settings: Settings
    folder: Path
    reference: Histories
    timing: Timing
    deadline: float
    min_trials: int = 1
    trials: list[Trial] = field(default_factory=list[Trial])
    uninterrupted: Histories | None = None
    ending: Ending | None = None

    def run(self, attempts: Sequence[Attempt]) -> None:
        """Runs all attempts."""
        for number, attempt in enumerate(attempts):
            if attempt.last is not None and self._is_late():
                for fault in (*attempt.faults, attempt.last):
                    self.trials.append(Trial(fault, reason=NO_TIME))
                continue
            self._run_attempt(self.folder / f"attempt-{number}", attempt)

    def _is_late(self) -> bool:
        done = sum(trial.outcome is not None for trial in self.trials)
        return time.monotonic() + self.timing.startup > self.deadline and done >= self.min_trials

    def _run_attempt(self, folder: Path, attempt: Attempt) -> None:
        work = folder / "work"
        folder.mkdir(parents=True)
        self.settings.copy(work)
        faults = [*attempt.faults, *([attempt.last] if attempt.last else [])]
        pauses = [fault.point for fault in faults]
        run = self.settings.start(work, folder / "ledger", folder / "output.txt", pauses=pauses)
        frozen = self._inject_all(run, folder, faults, attempt.last)
        frozen.sort(key=lambda files: faults.index(files.fault))  # the most important ones first
        if attempt.last is None:
            self.ending = run.wait(float("inf"), self.settings.timeout)
            self.uninterrupted = join_ranks(read_ledgers(run.ledger))
        run.kill()
        occurred = {files.fault for files in frozen} | {trial.fault for trial in self.trials}
        self.trials += [
            Trial(fault, reason="the command ended before the fault") for fault in faults if fault not in occurred
        ]
        for number, files in enumerate(frozen):
            self._restart(files, folder, work, remaining=len(frozen) - number)
        shutil.rmtree(work, ignore_errors=True)

    def _inject_all(self, run: CommandRun, folder: Path, faults: Sequence[Fault], last: Fault | None) -> list[_Frozen]:
        """Waits for each pause and injects its fault. Returns the files of the faults that occurred."""
        frozen, waiting = list[_Frozen](), set(range(len(faults)))
        while waiting:
            paused = run.wait_for_pause(waiting, self.settings.timeout)
            if paused is None:
                break
            waiting.discard(paused.index)
            fault = faults[paused.index]
            self.settings.options.report(f"{fault.kind.value} after step {fault.step}")
            if fault is not last:
                frozen.append(self._freeze(run, folder / f"files-{paused.index}", fault))
                run.resume()
            else:
                frozen += self._end_attempt(run, folder / f"files-{paused.index}", fault, paused)
                break
        return frozen

    def _freeze(self, run: CommandRun, target: Path, fault: Fault) -> _Frozen:
        """Copies the files of a stopped command: the files that SIGKILL would leave."""
        copy_files(run.work, target)
        return _Frozen(fault, target, join_ranks(read_ledgers(run.ledger)))

    def _end_attempt(self, run: CommandRun, target: Path, fault: Fault, paused: PausedProcess) -> list[_Frozen]:
        moment = time.time()
        if not _inject(run, fault, paused, self.settings.options.grace_seconds):
            self.trials.append(Trial(fault, reason="this system does not support this fault"))
            return []
        earlier, later = split_processes(read_ledgers(run.ledger), moment)
        attempt = join_ranks(earlier)
        if fault.kind is FaultKind.RANK and later:  # the launcher started the ranks again
            self._judge_own_restart(run, fault, attempt, join_ranks(later))
            return []
        problem = _check_fault(self.reference, attempt, fault, run)
        if problem:
            self.trials.append(Trial(fault, reason=problem))
            return []
        shutil.move(run.work, target)
        return [_Frozen(fault, target, attempt)]

    def _judge_own_restart(self, run: CommandRun, fault: Fault, attempt: Histories, restarted: Histories) -> None:
        code = run.process.returncode
        outcome = Outcome(self.reference, attempt, restarted, exit_code=None if code and code < 0 else code)
        done = max((len(history.steps) for history in attempt.values()), default=0)
        self.trials.append(Trial(fault, outcome, seconds=run.seconds(), step=done))

    def _restart(self, files: _Frozen, folder: Path, work: Path, remaining: int) -> None:
        """Restarts the command in the files of a fault, at the path of the attempt, and appends the result."""
        if self._is_late():
            self.trials.append(Trial(files.fault, reason=NO_TIME))
            shutil.rmtree(files.work, ignore_errors=True)
            return
        shutil.rmtree(work, ignore_errors=True)
        files.work.rename(work)
        damaged = self._tear_newest(files, work) if files.fault.kind is FaultKind.TORN else ()
        if files.fault.kind is FaultKind.TORN and not damaged:
            self.trials.append(Trial(files.fault, reason="no checkpoint could be truncated"))
            return
        name = files.work.name.replace("files", "restart")
        output = folder / f"{name}-output.txt"
        run = self.settings.start(work, folder / f"{name}-ledger", output, resumes=True)
        allotted = max(0.0, (self.deadline - time.monotonic()) / remaining)
        ending = self._watch(run, files, damaged, allotted)
        outcome = self._outcome(run, files, damaged)
        failed = ending.code not in {None, 0}
        outcome = replace(
            outcome,
            exit_code=ending.code,
            hung=ending.hung,
            message=last_lines(output) if failed or ending.hung else "",
        )
        step = max((len(history.steps) for history in files.attempt.values()), default=0)
        self.trials.append(Trial(files.fault, outcome, seconds=ending.seconds, step=step))

    def _tear_newest(self, files: _Frozen, work: Path) -> tuple[str, ...]:
        saved = checkpoints_at_fault(self.reference, files.attempt).saved
        newest = max(saved.values(), default=0)
        paths = [path for path, step in saved.items() if step == newest]
        return tuple(path for path in paths if _tear(work / path))

    def _watch(self, run: CommandRun, files: _Frozen, damaged: tuple[str, ...], allotted: float) -> Ending:
        """Waits until the restarted command ends or hangs, or until enough steps were compared."""
        pause = FIRST_CHECK_SECONDS
        while True:
            ending = run.wait(time.monotonic() + pause, self.settings.timeout)
            if ending is not None:
                return ending
            started = time.monotonic()
            if self._is_decided(run, files, damaged, allotted):
                run.kill()
                return Ending(None, hung=False, seconds=run.seconds())
            pause = max(FIRST_CHECK_SECONDS, 10 * (time.monotonic() - started))

    def _is_decided(self, run: CommandRun, files: _Frozen, damaged: tuple[str, ...], allotted: float) -> bool:
        outcome = self._outcome(run, files, damaged)
        if not outcome.restarted or not any(history.steps for history in outcome.restarted.values()):
            return False
        verdict = judge(outcome)
        if verdict.kind is VerdictKind.DIFFERS and verdict.step and not is_variable(verdict.component):
            return verdict.resumed_step + verdict.compared_steps >= verdict.step + STEPS_AFTER_DIFFERENCE
        reference = self.reference[min(self.reference)]
        if time.monotonic() > self.deadline:
            return verdict.resumed_step + verdict.compared_steps >= files.fault.step + MIN_COMPARED_STEPS
        enough = verdict.compared_steps >= steps_to_compare(reference, verdict.resumed_step, files.fault.step)
        return enough and run.seconds() > allotted

    def _outcome(self, run: CommandRun, files: _Frozen, damaged: tuple[str, ...]) -> Outcome:
        return Outcome(self.reference, files.attempt, join_ranks(read_ledgers(run.ledger)), damaged=damaged)


def _check_fault(reference: Histories, attempt: Histories, fault: Fault, run: CommandRun) -> str:
    """Returns why a fault did not occur as planned, or an empty string."""
    done = max((len(history.steps) for history in attempt.values()), default=0)
    total = max(len(history.steps) for history in reference.values())
    if fault.kind in {FaultKind.TERM, FaultKind.RANK} and run.process.returncode == 0 and done >= total:
        return "the command ended before the signal had an effect"
    if fault.kind is FaultKind.MID_SAVE:
        history = attempt.get(fault.point.rank)
        saves = history.saves if history else ()
        if not saves or saves[-1].phase != "open":
            return "the save was complete before the process died"
    return ""


_FULL_DEVICE = Path("/dev/full")
"""Device on which every write fails because no space is left."""
_SAVE_SECONDS = 10.0
"""Maximum time until a save ends after the fault."""

_RANK_SECONDS = 60.0
"""Maximum time for a launcher to end or restart the other ranks."""
_AFTER_FULL_DISK_SECONDS = 0.5
"""Time for the command to react to the failed save before it is killed."""


def _inject(run: CommandRun, fault: Fault, paused: PausedProcess, grace_seconds: float) -> bool:
    """Injects a fault that ends the command. Returns False if this system cannot inject it.

    All processes of the command are stopped at the start, and killed at the end.
    """
    if paused.pid not in {process.pid for process in run.processes()}:  # its number in another PID namespace
        run.kill()
        return False
    if fault.kind is FaultKind.TERM:
        run.process.send_signal(signal.SIGTERM)
        _continue(run, grace_seconds)
    elif fault.kind is FaultKind.RANK:
        psutil.Process(paused.pid).kill()
        _continue(run, max(grace_seconds, _RANK_SECONDS))
    elif fault.kind is FaultKind.MID_SAVE:
        return _kill_while_writing(run, fault, paused)
    elif fault.kind is FaultKind.FULL_DISK:
        return _fill_disk(run, paused)
    run.kill()
    return True


def _tear(path: Path) -> bool:
    """Truncates a checkpoint file, or the largest file of a checkpoint folder, to half of its size."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    if not files:
        return False
    largest = max(files, key=lambda file: file.stat().st_size)
    os.truncate(largest, largest.stat().st_size // 2)
    return True


def _continue(run: CommandRun, seconds: float) -> None:
    """Continues the command for a time, or until it ends."""
    run.signal_all(signal.SIGCONT)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not run.has_ended():
        time.sleep(POLL_SECONDS)


def _kill_while_writing(run: CommandRun, fault: Fault, paused: PausedProcess) -> bool:
    """Ends the process at the write that reaches the size limit. It can run no code after it, as with SIGKILL."""
    try:
        hard = resource.prlimit(paused.pid, resource.RLIMIT_FSIZE)[1]
        resource.prlimit(paused.pid, resource.RLIMIT_FSIZE, (fault.size_limit, hard))
    except (AttributeError, OSError):  # not Linux, or not permitted
        run.kill()
        return False
    run.signal_all(signal.SIGCONT)
    deadline = time.monotonic() + _SAVE_SECONDS
    while time.monotonic() < deadline and _is_running(paused.pid):
        time.sleep(0.001)
    run.kill()
    return True


def _fill_disk(run: CommandRun, paused: PausedProcess) -> bool:
    """Lets every write to the checkpoint fail with ENOSPC, and kills the command soon after the save."""
    path = Path(paused.path)
    if not _FULL_DEVICE.exists() or path.is_dir() or not path.parent.is_dir():
        run.kill()
        return False
    path.unlink(missing_ok=True)  # opening the file for writing would truncate it, too
    path.symlink_to(_FULL_DEVICE)
    size = _ledger_size(run)
    run.signal_all(signal.SIGCONT)
    deadline = time.monotonic() + _SAVE_SECONDS
    while time.monotonic() < deadline and not run.has_ended():
        if _ledger_size(run) > size:  # the save or a step has ended
            break
        time.sleep(POLL_SECONDS)
    _continue(run, _AFTER_FULL_DISK_SECONDS)
    run.kill()
    for link in run.work.rglob("*"):
        if link.is_symlink() and link.readlink() == _FULL_DEVICE:
            link.unlink()
            link.touch()
    return True


def _ledger_size(run: CommandRun) -> int:
    return sum(entry.stat().st_size for entry in os.scandir(run.ledger))


def _is_running(pid: int) -> bool:
    with suppress(psutil.Error):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False
