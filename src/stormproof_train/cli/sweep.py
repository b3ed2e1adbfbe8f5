"""Checks and runs the jobs of a sweep: one run folder per job, finished runs are skipped, one table at the end."""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, TypedDict

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import OverrideParseException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from stormproof.checkpoint import atomic_write
from stormproof.distributed.rank import is_rank_zero
from stormproof.signals.listener import TERMINATION_SIGNALS
from stormproof_train.cli.collection_pause import paused_collection
from stormproof_train.config.redaction import redact_override
from stormproof_train.console import format_value, print_line, print_table
from stormproof_train.error_messages import describe_error
from stormproof_train.errors import ExitCode, PreemptedError, StopError, UserError
from stormproof_train.launcher import detect_launcher
from stormproof_train.mapping_file import read_mapping, read_unless_damaged
from stormproof_train.run.records import RunSummary
from stormproof_train.run.subprocess_run import run_subprocess

_FLAGS_WITH_VALUE = {"--config-dir", "-cd", "--config-name", "-cn", "--config-path", "-cp"}
"""Hydra's flags whose value is the next argument."""

_RESULT_KEYS = {"overrides": list, "code": int, "sentence": object, "summary": object}
RESULT_FILE = "result.json"
"""File that a job writes to its folder in the sweep, on whatever machine it runs."""


class JobResult(TypedDict):
    """Content of ``result.json``.

    Attributes:
        overrides: Overrides of the job, redacted.
        code: Exit code.
        sentence: Reason of the failure. None if the job finished.
        summary: Summary of the run. None if the job failed.
    """

    overrides: list[str]
    code: int
    sentence: str | None
    summary: RunSummary | None


def run_job(cfg: DictConfig) -> None:
    """Runs one job of a sweep and records its result. A failed job does not end the sweep."""
    with paused_collection():
        from stormproof_train.main import run  # noqa: PLC0415 (imports torch)

    hydra = HydraConfig.get()
    Path(hydra.sweep.dir, "multirun.yaml").unlink(missing_ok=True)  # Hydra writes all arguments to it, with secrets
    overrides = [redact_override(override.removeprefix("++")) for override in hydra.overrides.task]
    print_line(f"#{hydra.job.num}: {' '.join(overrides)}")
    result: JobResult = {"overrides": overrides, "code": int(ExitCode.FINISHED), "sentence": None, "summary": None}
    try:
        _check_not_tuning(cfg)
        has_ranks = _has_ranks_to_start(cfg)
        if has_ranks:
            searchpath_overrides = [
                hydra_override
                for hydra_override in hydra.overrides.hydra
                if hydra_override.startswith("hydra.searchpath")
            ]
            run_subprocess([*_config_flags(sys.argv[1:]), *searchpath_overrides, *hydra.overrides.task])
        with forward_preemption_to_launcher():
            result["summary"] = run(cfg, should_train=not has_ranks)
        print_line(f"#{hydra.job.num}: {_format_scores(result['summary'])}")
    except StopError as error:  # a signal or Ctrl-C is meant for the whole sweep
        print_line(f"#{hydra.job.num}: {error}")
        print_line("the same command resumes this job and runs the remaining ones")
        raise SystemExit(error.exit_code) from error
    except Exception as error:  # noqa: BLE001 (reported in the table and by the exit code)
        result["sentence"], result["code"] = describe_error(error)
        if result["code"] == ExitCode.FAILED or cfg.get("debug"):
            traceback.print_exc()
        print_line(f"#{hydra.job.num} failed: {result['sentence']}")
    if is_rank_zero():
        with atomic_write(Path(hydra.runtime.output_dir) / RESULT_FILE) as file:
            file.write(json.dumps(result).encode())


def _check_not_tuning(cfg: DictConfig) -> None:
    if cfg.tune:  # set by a config file, which check_sweep does not read
        raise UserError(f"tune={cfg.tune} is not supported in a sweep. Remove -m, or remove tune.")


def _config_flags(argv: Sequence[str]) -> list[str]:
    """Returns the flags that select config folders: all flags except the one for a sweep."""
    return [
        arg
        for previous_arg, arg in pairwise(["", *argv])
        if previous_arg in _FLAGS_WITH_VALUE or (arg.startswith("-") and arg not in {"-m", "--multirun"})
    ]


@contextmanager
def forward_preemption_to_launcher() -> Iterator[None]:
    """Calls the signal handler of the launcher after a run was preempted and has saved a checkpoint.

    submitit's handler requeues the job in SLURM and ends the process. Without this function, it would do so in the
    middle of a step, and on rank 0 only.
    """
    handlers = {
        signum: signal.getsignal(signum) for signum in TERMINATION_SIGNALS if signum != signal.SIGINT
    }  # Python installs one for SIGINT
    try:
        yield
    except PreemptedError as error:
        handler = handlers.get(error.signal)
        if callable(handler):
            print_line(str(error))
            handler(error.signal, None)
        raise


class SweepTable(Callback):
    """Prints the table of a sweep and sets its exit code."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Collects the results of the jobs.

        Raises:
            SystemExit: With the exit code of the first failed job.
        """
        files = sorted(Path(config.hydra.sweep.dir).glob(f"*/{RESULT_FILE}"), key=lambda file: int(file.parent.name))
        results: list[Any] = []
        for file in files:
            result = read_unless_damaged(lambda path=file: read_mapping(path, _RESULT_KEYS))
            if result is None:
                print_line(f"warning: {file} is damaged, so the table lacks job {file.parent.name}")
            else:
                results.append(result)
        print_results(results)
        codes = [result["code"] for result in results if result["code"]]
        if codes:
            raise SystemExit(codes[0])


def print_results(results: list[JobResult]) -> None:
    """Prints one table per headline metric with one row per job, sorted by validation, with failed jobs at the end."""
    common_overrides = (
        set.intersection(*(set(result["overrides"]) for result in results)) if len(results) > 1 else set()
    )
    failed_results = [result for result in results if result["summary"] is None]
    headlines = sorted({result["summary"]["headline"] for result in results if result["summary"]})
    for headline in headlines or [""]:  # empty if all jobs have failed
        scored_results = [
            result for result in results if result["summary"] and result["summary"]["headline"] == headline
        ]
        table_results = [
            *sorted(scored_results, key=_sort_key),
            *(failed_results if headline == (headlines or [""])[-1] else []),
        ]
        columns = ("", f"validation {headline}", f"test {headline}", "seconds", "run")
        title = f"{len(table_results)} run{'s' * (len(table_results) != 1)}, best on validation first"
        print_table(title, columns, [_result_row(result, common_overrides) for result in table_results])


def _result_row(result: JobResult, common_overrides: set[str]) -> tuple[str, ...]:
    swept_overrides = " ".join(override for override in result["overrides"] if override not in common_overrides)
    summary = result["summary"]
    if summary is None:
        return swept_overrides, "failed", "", "", result["sentence"] or ""
    name = summary["headline"]
    test_score = format_value(summary["test"][name]) if summary["test"] else ""
    return (
        swept_overrides,
        format_value(summary["validation"][name]),
        test_score,
        f"{summary['seconds']:.1f}",
        summary["name"],
    )


def _format_scores(summary: RunSummary) -> str:
    name = summary["headline"]
    test_text = f"{format_value(summary['test'][name])} on test" if summary["test"] else "not tested"
    return f"{name} {format_value(summary['validation'][name])} on validation, {test_text}"


def _sort_key(result: JobResult) -> tuple[bool, float]:
    summary = result["summary"]
    assert summary is not None
    value = summary["validation"][summary["headline"]]
    if math.isnan(value):
        return True, 0.0
    return False, -value if summary["higher_is_better"] else value


def _has_ranks_to_start(cfg: DictConfig) -> bool:
    """Returns True if Lightning starts further ranks by repeating the command, which would be the whole sweep.

    A job that submitit runs in SLURM is a process of its own and has its ranks already.

    Raises:
        UserError: If a launcher has started several processes of the sweep.
    """
    if os.environ.get("SUBMITIT_EXECUTOR") == "slurm":
        return False
    if math.prod(detect_launcher().values()) > 1:
        raise UserError("a sweep starts the ranks of its jobs. Run it without torchrun or srun.")
    trainer = cfg.get("trainer") or {}
    return trainer.get("devices", 1) not in {1, "1"} or trainer.get("num_nodes", 1) != 1


def check_sweep(argv: Sequence[str]) -> None:
    """Rejects sweeps in which two jobs would be the same run or share a name.

    Args:
        argv: Command-line arguments with flags. Arguments that cannot be parsed are left to Hydra.

    Raises:
        UserError: If a value is listed twice, different jobs have the same name, or a setting is tuned.

    Example:
        >>> check_sweep(["-m", "seed=1,1"])
        Traceback (most recent call last):
        stormproof_train.errors.UserError: seed=1,1 lists the value 1 twice. List each value once.
    """
    override_args = [arg for arg in argv if "=" in arg and not arg.startswith("-")]
    try:
        overrides = OverridesParser.create().parse_overrides(override_args)
    except OverrideParseException:
        return
    for override in overrides:
        if override.key_or_group == "tune" and override.value() is not None:
            raise UserError(f"{_format_override(override)} is not supported in a sweep. Remove -m, or remove it.")
    sweeps = [override for override in overrides if override.is_sweep_override()]
    for override in sweeps:
        values = list(override.sweep_string_iterator()) if override.is_discrete_sweep() else []
        for value in values:
            if values.count(value) > 1:
                raise UserError(f"{_format_override(override)} lists the value {value} twice. List each value once.")
    name_override = next((override for override in overrides if override.key_or_group == "name"), None)
    other_sweeps = [override for override in sweeps if override is not name_override]
    if name_override is not None and other_sweeps and "${" not in _format_override(name_override):
        raise UserError(
            f"{_format_override(name_override)} gives all jobs of {_format_override(other_sweeps[0])} the same name. "
            "Remove it, or include a swept value (name='run-${seed}')."
        )


def _format_override(override: Override) -> str:
    """Returns an override in the form that users type."""
    return redact_override(str(override.input_line).removeprefix("++"))
