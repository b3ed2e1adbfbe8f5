"""Subcommand ``search``: searches for the best settings with any number of workers."""

from __future__ import annotations

import json
import math
import os
import random
import socket
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import filelock
import pytorch_lightning as pl
import torch
from optuna.exceptions import StorageInternalError

from stormproof.checkpoint import atomic_write
from stormproof_train.build_task import build_task
from stormproof_train.config.conf_dir import conf_dir
from stormproof_train.config.plan import RECOVERY_TARGET, Plan
from stormproof_train.console import format_value, print_line, print_table
from stormproof_train.data.spec import DataSpec, infer_spec
from stormproof_train.errors import ExitCode, StorageError, UserError, first_line
from stormproof_train.launcher import detect_launcher
from stormproof_train.metrics import evaluation_metrics
from stormproof_train.report.kit.json_numbers import to_json
from stormproof_train.report.kit.page import render_html
from stormproof_train.search.arguments import Arguments, Composer, parse_arguments
from stormproof_train.search.final_evaluation import FinalEvaluation
from stormproof_train.search.folder import LOCK_SECONDS, SearchFolder
from stormproof_train.search.local_workers import HELPER_VARIABLE, LocalWorkers
from stormproof_train.search.pruner import TrialPruner, increase_limits
from stormproof_train.search.records import ReportedTrial, SearchNumbers
from stormproof_train.search.report.search_page import search_page
from stormproof_train.search.results import collect_numbers, select_winner
from stormproof_train.search.runner import Runner
from stormproof_train.search.samplers import check_sampler
from stormproof_train.search.settings import DEFAULT_TRIALS, Settings
from stormproof_train.search.space import Parameter, Space
from stormproof_train.search.trial_command import TrialCommand
from stormproof_train.search.trials import TrialStore
from stormproof_train.search.work_queue import Claims, WorkQueue
from stormproof_train.search.worker import Worker

REPORT_FILE = "report.html"
MIN_INTERVAL_SECONDS = 60.0
"""Minimum seconds between two updates during a search."""
MAX_ROWS = 20
"""Maximum number of rows. The report lists all trials."""


def run(argv: Sequence[str]) -> int:
    """Runs a search to the end and prints its results.

    Args:
        argv: Arguments after ``search``.

    Returns:
        Exit code.

    Raises:
        RunError: With the message for the user.
    """
    if math.prod(detect_launcher().values()) > 1:
        raise UserError("search starts the ranks of its trials. Run it without torchrun or srun.")
    conf = conf_dir()
    args = parse_arguments(argv, conf)
    composer = Composer(conf, args.flags)
    default = composer.compose_plan(args.fixed_overrides)
    _check_plan(default, args.settings.workers)
    check_sampler(args.settings, args.space)
    folder = SearchFolder(args, default)
    if not folder.exists:
        check_space(args, composer)
    try:
        folder.create()
        _run_search(args, argv, folder, composer, default)
    except filelock.Timeout as error:
        raise StorageError(
            f"{error.lock_file} has been locked for {LOCK_SECONDS:.0f} s. Stop the worker that locked it."
        ) from error
    except StorageInternalError as error:
        raise StorageError(
            f"search.storage does not respond: {first_line(error.__cause__ or error)}; the same command resumes the "
            "search"
        ) from error
    return ExitCode.FINISHED


def _run_search(args: Arguments, argv: Sequence[str], folder: SearchFolder, composer: Composer, default: Plan) -> None:
    settings, trials, commands = args.settings, _trials(args, folder), TrialCommand(args, default, folder.name)
    pruner, claims = TrialPruner(settings, trials, folder), Claims(folder.claims_dir)
    devices = default.trainer.arguments()["devices"]
    with Runner(folder, is_distributed=devices not in {1, "1"}) as runner:
        final_evaluation = FinalEvaluation(
            settings, trials, folder, commands, runner, claims, composer.compose_plan, default.seed
        )
        _print_status(folder, trials, claims)
        page = ReportWriter(
            folder,
            lambda: collect_numbers(
                folder.name, settings, args.space, trials, pruner, final_evaluation, args.fixed_overrides
            ),
        )
        queue = WorkQueue(args.space, folder, trials, pruner, claims)
        with LocalWorkers(argv, 1 if queue.is_finished() else settings.workers):
            Worker(settings, folder, trials, commands, queue, pruner, runner, page.refresh).run()
            winner = select_winner(trials.records(), settings, trials.pareto_front())
            if winner is not None:
                final_evaluation.evaluate(winner)
    numbers = page.collect_numbers()
    if HELPER_VARIABLE not in os.environ:  # prints the table first, because writing the page may fail
        print_summary(numbers)
        print_line(f"report: {page.write(numbers)}")
    if numbers["best"] is None:
        raise UserError(explain_no_winner(numbers))


def _trials(args: Arguments, folder: SearchFolder) -> TrialStore:
    combinations = args.space.combinations()
    if args.settings.sampler == "grid" and combinations is None:
        interval_key = next(entry.key for entry in args.space.parameters if entry.values() is None)
        raise UserError(f"search.sampler=grid: {interval_key} is an interval. A grid needs values: a,b,c or range(…).")
    with folder.lock():  # the tables are created before the first query
        trials = TrialStore(folder.storage_url, folder.study_name, args.settings, args.space)
        if not trials.records() and any(folder.trials_dir.iterdir()):
            raise UserError(
                f"{folder.trials_dir} contains trials that are not in the search's storage. Restore study.db and "
                "search.json, or choose another name (search.name=…)."
            )
        grid = combinations if args.settings.sampler == "grid" and combinations else []
        trials.set_shared(
            "limits", increase_limits(trials.get_shared("limits"), args.settings, len(grid) or DEFAULT_TRIALS)
        )
        # shuffled, so that the first trials cover the whole grid; a kill may have left some queued trials
        for entry in random.Random(args.settings.seed).sample(grid, len(grid))[len(trials.records()) :]:  # noqa: S311 (no secret)
            trials.enqueue(entry)
    return trials


def _check_plan(default: Plan, workers: int) -> None:
    if not any(target.path == RECOVERY_TARGET for target in default.callbacks.values()):
        raise UserError(f"search needs {RECOVERY_TARGET} to resume interrupted trials. Add it to the callbacks.")
    trainer, gpus = default.trainer.arguments(), torch.cuda.device_count()
    devices = int(trainer["devices"]) if str(trainer["devices"]).isdigit() else 1
    if gpus and trainer["accelerator"] != "cpu" and workers * devices > gpus and devices > 1:
        raise UserError(f"search.workers={workers} with trainer.devices={devices} each need more than {gpus} GPUs")
    if trainer["num_nodes"] != 1:
        raise UserError("trainer.num_nodes must be 1 in a search. Start several workers to use several nodes.")


def _print_status(folder: SearchFolder, trials: TrialStore, claims: Claims) -> None:
    if HELPER_VARIABLE in os.environ:
        return
    num_started = sum(trial.state != "waiting" for trial in trials.records())
    print_line(
        f"search {folder.path}" + (f": {num_started} trial{'s' * (num_started != 1)} so far" if num_started else "")
    )
    if folder.storage_url.startswith("sqlite") and claims.hosts() - {socket.gethostname()}:
        print_line(
            "warning: SQLite may lose data of workers on several machines. Start the search with search.storage=…"
        )


class ReportWriter:
    """Writes ``answer.json`` and ``report.html``."""

    def __init__(self, folder: SearchFolder, collect_numbers: Callable[[], SearchNumbers]) -> None:
        self._folder, self.collect_numbers = folder, collect_numbers
        self._last_write = -math.inf

    def refresh(self) -> None:
        """Writes both files unless they were written recently. A failure only prints a warning."""
        if time.monotonic() - self._last_write < MIN_INTERVAL_SECONDS:
            return
        try:
            self.write(self.collect_numbers())
        except Exception as error:  # noqa: BLE001 (the next update retries, and the last write raises)
            print_line(f"warning: {self._folder.path / REPORT_FILE} could not be written: {error}")

    def write(self, numbers: SearchNumbers) -> Path:
        """Writes both files and returns the path of the page."""
        plain_numbers = to_json(numbers)
        page = render_html(search_page(plain_numbers))
        for name, content in (
            ("answer.json", f"{json.dumps(plain_numbers, indent=1, allow_nan=False)}\n"),
            (REPORT_FILE, page),
        ):
            with atomic_write(self._folder.path / name) as file:
                file.write(content.encode())
        self._last_write = time.monotonic()
        return self._folder.path / REPORT_FILE


def print_summary(numbers: SearchNumbers) -> None:
    """Prints the table of trials and the sentences at the top of the report.

    Args:
        numbers: Result of :func:`stormproof_train.search.results.collect_numbers`.
    """
    objective_names = [objective["name"] for objective in numbers["objectives"]]
    trials = [*_rank_trials(numbers), *(trial for trial in numbers["trials"] if trial["state"] == "failed")][:MAX_ROWS]
    keys = [parameter["key"] for parameter in numbers["space"]]
    rows = [
        (
            str(trial["number"]), *(_format_value(trial["params"].get(key, "")) for key in keys),
            *(map(format_value, trial["values"]) if trial["values"] else [""] * len(objective_names)),
            f"{trial['steps']:,}",
            _describe_outcome(trial),
        )
        for trial in trials
    ]  # fmt: skip
    title = f"{numbers['name']}: trials, best first"
    print_table(title, ("trial", *keys, *objective_names, "steps", "outcome"), rows)
    if len(trials) < len(numbers["trials"]):
        print_line(f"The report lists {len(numbers['trials']) - len(trials):,} more.")
    for sentence in search_page(to_json(numbers)).sentences:
        print_line(sentence)


def explain_no_winner(numbers: SearchNumbers) -> str:
    """Explains why a search has no winner."""
    states = Counter(trial["state"] for trial in numbers["trials"])
    if states["complete"]:
        return (
            f"no trial satisfies {', '.join(numbers['constraints'])}: relax the constraints or change the search space"
        )
    counts_text = ", ".join(f"{count} {state}" for state, count in states.items()) or "none started"
    return f"no trial has completed ({counts_text}): see the reasons in the table"


def _rank_trials(numbers: SearchNumbers) -> list[ReportedTrial]:
    sign = -1 if numbers["objectives"][0]["higher_is_better"] else 1
    complete_trials = [trial for trial in numbers["trials"] if trial["state"] == "complete"]
    stopped_trials = [trial for trial in numbers["trials"] if trial["state"] in {"pruned", "paused", "running"}]
    complete_trials.sort(key=lambda trial: (not trial["feasible"], sign * _first_value(trial)))
    stopped_trials.sort(key=lambda trial: (-len(trial["curve"]), trial["number"]))
    return [*complete_trials, *stopped_trials]


def _first_value(trial: ReportedTrial) -> float:
    assert trial["values"] is not None  # the trial is complete
    return trial["values"][0]


def _describe_outcome(trial: ReportedTrial) -> str:
    if trial["state"] == "complete":
        return ""
    if trial["state"] == "failed" or not trial["reason"]:
        return f"{trial['state']}: {trial['reason'] or ''}".removesuffix(": ")
    return trial["reason"]  # states that it was stopped


def _format_value(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def check_space(arguments: Arguments, composer: Composer) -> None:
    """Builds the task for each choice and for both ends of each interval.

    Raises:
        UserError: If a run with one of these values would fail to start.
    """
    default = composer.compose_plan(arguments.fixed_overrides)
    _check_finite_length(default, arguments.settings)
    data, spec = _build(default)
    metric_names = {f"val/{name}" for name in (*evaluation_metrics(spec), "loss")}
    for name in arguments.settings.validation_metrics:
        if name not in metric_names:
            raise UserError(f"validation of these data measures {', '.join(sorted(metric_names))}, not {name}")
    for parameter in arguments.space.parameters:
        condition_overrides = _condition_overrides(parameter, arguments.space)
        for value in _values_to_try(parameter):
            override = f"{parameter.key}={value}"
            try:
                plan = composer.compose_plan([*arguments.fixed_overrides, *condition_overrides, override])
                if plan.data == default.data:
                    build_task(plan, data, spec, plan.bind_loss(spec.task))
                else:
                    _build(plan)
            except UserError as error:
                hint = "; use int(interval(…))" if isinstance(value, float) and "must be int" in str(error) else ""
                raise UserError(f"{override} cannot be searched: {error}{hint}") from error


def _build(plan: Plan) -> tuple[pl.LightningDataModule, DataSpec]:
    data = plan.data.build(seed=plan.seed)
    spec = infer_spec(data)
    build_task(plan, data, spec, plan.bind_loss(spec.task))
    return data, spec


def _check_finite_length(plan: Plan, settings: Settings) -> None:
    trainer: Mapping[str, Any] = plan.trainer.arguments()
    if settings.effective_pruner != "none" and trainer["max_epochs"] == -1 and trainer["max_steps"] == -1:
        raise UserError(
            f"search.pruner={settings.effective_pruner} needs runs of finite length: set trainer.max_epochs above 0, "
            "or trainer.max_steps"
        )


def _condition_overrides(parameter: Parameter, space: Space) -> list[str]:
    """Returns the override of a choice under which a parameter exists, if the choice is searched too."""
    group = parameter.key.partition(".")[0]
    choices = next(
        (candidate.values() for candidate in space.parameters if candidate.key == group != parameter.key), None
    )
    return [f"{group}={min(parameter.only_with.get(group, choices))}"] if choices else []


def _values_to_try(parameter: Parameter) -> list[Any]:
    fields = parameter.as_dict()
    return fields["choices"] or [fields["low"], fields["high"]]
