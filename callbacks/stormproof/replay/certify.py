"""Certifies that a training command resumes exactly after faults."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from stormproof.redaction import redact_output
from stormproof.replay.certification import NO_TIME, Certification, Result, Skipped
from stormproof.replay.command_run import Ending
from stormproof.replay.comparison.history import Histories, join_ranks
from stormproof.replay.comparison.verdict import VerdictKind, judge
from stormproof.replay.faults.lane import LaneRun, Trial
from stormproof.replay.faults.plan import plan_faults
from stormproof.replay.faults.schedule import Schedule, Timing, make_schedule, measure_timing
from stormproof.replay.ledger import read_ledgers
from stormproof.replay.not_certifiable import NotCertifiable
from stormproof.replay.output_text import last_lines
from stormproof.replay.reports.component_names import describe_component
from stormproof.replay.requirements import (
    Determinism,
    check_reference,
    check_resume,
    compare_uninterrupted,
    find_recorder_error,
)
from stormproof.replay.settings import Options, Settings
from stormproof.replay.working_copy import prepare_output

MAX_TIMES = 3.5
"""Maximum duration of a certification by default, in durations of the recorded command.

The goal is 4 durations of the command without the recorder.
"""
DEFAULT_BUDGET = 600.0
"""Maximum time for faults by default, in seconds."""
FIRST_TIMEOUT = 1800.0
"""Seconds without progress after which the first run hangs. Nothing is known about the command yet."""
ONE_THREAD = 1.3
"""Maximum number of used cores of a command that counts as one thread."""
FRAMEWORKS = {
    "pytorch_lightning": "lightning",
    "lightning": "lightning",
    "transformers": "transformers",
    "accelerate": "accelerate",
}


def certify(options: Options) -> Certification:
    """Runs a command twice without faults, then with faults, and judges each restart.

    Raises:
        NotCertifiable: If no statement about the command is possible.
    """
    output = (options.folder / options.output).resolve()
    prepare_output(output, options.folder)
    settings = Settings(options, output, options.timeout or FIRST_TIMEOUT)
    try:
        return _certify(settings, output / "scratch")
    finally:
        settings.running.close()  # after Ctrl-C or an error


def _certify(settings: Settings, scratch: Path) -> Certification:
    options, started = settings.options, time.monotonic()
    reference = _run_once(settings, scratch / "uninterrupted")
    timing = reference.timing
    lanes = options.jobs or (2 if _may_run_twice(reference) else 1)
    schedule = _make_schedule(options, reference, lanes)
    settings = replace(settings, timeout=options.timeout or timing.stall_seconds)
    deadline = time.monotonic() + _fault_seconds(options, timing)
    runs = _run_lanes(settings, schedule, scratch, reference, deadline)
    determinism = _check_determinism(reference.histories, runs)
    trials = [trial for run in runs for trial in run.trials]
    reasons = [find_recorder_error(trial.outcome) if trial.outcome else trial.reason for trial in trials]
    results = [_judge(trial, determinism) for trial, reason in zip(trials, reasons, strict=True) if not reason]
    check_resume(results)
    skipped = [Skipped(trial.fault, reason) for trial, reason in zip(trials, reasons, strict=True) if reason]
    skipped += [Skipped(fault, NO_TIME) for fault in schedule.omitted]
    if not options.keep:
        shutil.rmtree(scratch / "uninterrupted" / "work", ignore_errors=True)
    first = reference.histories[min(reference.histories)]
    packages = dict(first.packages or {})
    return Certification(
        tuple(redact_output("\x1f".join(options.command)).split("\x1f")),
        steps=len(first.steps),
        ranks=len(reference.histories),
        run_seconds=timing.total,
        seconds=time.monotonic() - started,
        framework=next((value for name, value in FRAMEWORKS.items() if name in packages), "torch"),
        packages=packages,
        results=tuple(sorted(results, key=lambda result: (result.step, result.fault.kind.value))),
        skipped=tuple(skipped),
        ignored=tuple(sorted(determinism.ignored)),
        every=options.every,
    )


def _may_run_twice(reference: _Reference) -> bool:
    """Returns whether two runs at the same time compete for nothing: cores, a GPU or the port of a process group."""
    uses_cuda = any("rng/cuda" in step.components for step in reference.histories[min(reference.histories)].steps)
    is_single = len(reference.histories) == 1 and reference.cores <= ONE_THREAD
    return is_single and not uses_cuda and (os.cpu_count() or 1) > 1


@dataclass(frozen=True, slots=True)
class _Reference:
    """The first uninterrupted run."""

    histories: Histories
    timing: Timing
    cores: float
    sizes: dict[str, int]


def _run_once(settings: Settings, folder: Path) -> _Reference:
    settings.options.report("uninterrupted run")
    folder.mkdir(parents=True)
    settings.copy(folder / "work")
    launched = time.time()
    run = settings.start(folder / "work", folder / "ledger", folder / "output.txt")
    before = run.cpu_seconds()
    ending = run.wait(float("inf"), settings.timeout)
    assert ending is not None
    cores = (run.cpu_seconds() - before) / max(ending.seconds, 0.001)
    histories = join_ranks(read_ledgers(run.ledger))
    check_reference(histories, ending, last_lines(folder / "output.txt"))
    first = histories[min(histories)]
    sizes = {save.path: _size(folder / "work" / save.path) for save in first.saves}
    return _Reference(histories, measure_timing(first, launched, ending.seconds), cores, sizes)


def _make_schedule(options: Options, reference: _Reference, lanes: int) -> Schedule:
    first = reference.histories[min(reference.histories)]
    faults = plan_faults(
        first,
        ranks=len(reference.histories),
        count=options.max_faults,
        kinds=options.kinds,
        sizes=reference.sizes,
        seed=options.seed,
    )
    if not faults:
        raise NotCertifiable("None of the requested faults can occur in this run. Pass other kinds with --faults.")
    return make_schedule(
        faults, first, reference.timing, lanes=lanes, seconds=_fault_seconds(options, reference.timing)
    )


def _fault_seconds(options: Options, timing: Timing) -> float:
    """Returns the seconds for the second uninterrupted run and all faults."""
    if options.budget is not None:
        return timing.total + options.budget
    return min((MAX_TIMES - 1) * timing.total, timing.total + DEFAULT_BUDGET)


def _run_lanes(
    settings: Settings, schedule: Schedule, scratch: Path, reference: _Reference, deadline: float
) -> list[LaneRun]:
    """Runs all lanes in threads. The first exception of a lane is raised after all have ended."""
    runs = [
        LaneRun(settings, scratch / f"lane-{number}", reference.histories, reference.timing, deadline)
        for number in range(len(schedule.lanes))
    ]
    errors = list[BaseException]()

    def work(run: LaneRun, number: int) -> None:
        try:
            run.run(schedule.lanes[number].attempts)
        except BaseException as error:  # noqa: BLE001 (raised in the main thread)
            errors.append(error)

    threads = [
        threading.Thread(target=work, args=(run, number), name=f"certify lane {number}")
        for number, run in enumerate(runs)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return runs


def _check_determinism(reference: Histories, runs: Sequence[LaneRun]) -> Determinism:
    second = next(run for run in runs if run.uninterrupted is not None)
    ending: Ending | None = second.ending
    if ending is None or ending.hung or ending.code != 0:
        problem = "hung" if ending is None or ending.hung else f"failed with exit code {ending.code}"
        raise NotCertifiable(
            f"The command succeeded in the first uninterrupted run and {problem} in the second. "
            "Make sure that it succeeds each time."
        )
    determinism = compare_uninterrupted(reference, second.uninterrupted or {})
    if not determinism.is_deterministic:
        where = f" on rank {determinism.rank}" if len(reference) > 1 else ""
        raise NotCertifiable(
            f"The command is not deterministic: two uninterrupted runs differ at step {determinism.step}{where}, first "
            f"in {describe_component(determinism.component)}. Seed all random generators and use deterministic "
            "algorithms."
        )
    return determinism


def _judge(trial: Trial, determinism: Determinism) -> Result:
    assert trial.outcome is not None
    verdict = judge(replace(trial.outcome, ignored=determinism.ignored))
    if verdict.kind is VerdictKind.EXACT and not trial.outcome.restarted and trial.outcome.exit_code is None:
        verdict = replace(verdict, kind=VerdictKind.NO_FAULT)
    return Result(trial.fault, trial.step, verdict, trial.seconds)


def _size(path: Path) -> int:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return max((file.stat().st_size for file in files), default=1024)
