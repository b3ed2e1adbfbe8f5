"""Trains the winner and the default on fresh seeds after a search, and tests the winner once."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stormproof_train.config.identity import flatten
from stormproof_train.config.plan import Plan
from stormproof_train.config.redaction import redact_override
from stormproof_train.console import print_line
from stormproof_train.errors import ExitCode, StorageError
from stormproof_train.mapping_file import read_mapping
from stormproof_train.run.folder import RunFolder
from stormproof_train.search.folder import SearchFolder
from stormproof_train.search.pruner import CONTINUE
from stormproof_train.search.runner import Runner, RunOutcome
from stormproof_train.search.settings import Settings
from stormproof_train.search.space import format_overrides
from stormproof_train.search.trial_command import TrialCommand
from stormproof_train.search.trials import TrialRecord, TrialStore
from stormproof_train.search.work_queue import Claims

DEFAULT = "default"


@dataclass(frozen=True)
class FinalRun:
    """A run on a fresh seed.

    Attributes:
        label: ``default``, or the name of the winner such as ``trial-0007``.
        seed: Seed of the run.
        params: Parameters of the winner. Empty for the default.
    """

    label: str
    seed: int
    params: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Name of its folder, and key in the storage."""
        return f"{self.label}-seed-{self.seed}"


class FinalEvaluation:
    """Runs the final runs and the test once, after the last trial."""

    def __init__(
        self,
        settings: Settings,
        trials: TrialStore,
        folder: SearchFolder,
        command: TrialCommand,
        runner: Runner,
        claims: Claims,
        compose_plan: Callable[[list[str]], Plan],
        seed: int,
    ) -> None:
        self._settings, self._trials, self._folder, self._command = settings, trials, folder, command
        self._runner, self._claims, self._compose_plan, self._seed = runner, claims, compose_plan, seed

    def list_runs(self, winner: TrialRecord) -> list[FinalRun]:
        """Returns the runs on fresh seeds, in pairs of winner and default."""
        seeds = [self._seed + offset for offset in range(1, self._settings.final_seeds + 1)]
        return [
            FinalRun(label, seed, params)
            for seed in seeds
            for label, params in ((_trial_name(winner), winner.params), (DEFAULT, {}))
        ]

    def collect_results(self, winner: TrialRecord) -> dict[str, Any]:
        """Returns the known results of the final runs by name, and the result of the test as ``test``."""
        names = [run.name for run in self.list_runs(winner)]
        results = {name: self._trials.get_shared(f"final/{name}") for name in names}
        results["test"] = self._trials.get_shared(f"test/{_trial_name(winner)}")
        return {name: result for name, result in results.items() if result is not None}

    def evaluate(self, winner: TrialRecord) -> None:
        """Executes the jobs that no other worker has claimed, and waits for the others."""
        jobs: list[tuple[str, str, Callable[[], Any]]] = [
            (final_run.name, f"final/{final_run.name}", functools.partial(self._train, final_run))
            for final_run in self.list_runs(winner)
        ]
        jobs.append(("test", f"test/{_trial_name(winner)}", functools.partial(self._test, winner)))
        while pending_jobs := [job for job in jobs if self._trials.get_shared(job[1]) is None]:
            if not any(self._try_job(*job) for job in pending_jobs):
                self._runner.wait(1.0)

    def _try_job(self, name: str, key: str, job: Callable[[], Any]) -> bool:
        if not self._claims.acquire(name):
            return False
        try:
            if self._trials.get_shared(key) is None:  # another worker may have finished it meanwhile
                self._trials.set_shared(key, job())
        finally:
            self._claims.release(name)
        return True

    def _train(self, final_run: FinalRun) -> dict[str, Any]:
        folder = self._folder.final_dir / final_run.name
        command = [
            *self._command.build(final_run.params, folder),
            f"seed={final_run.seed}",
            *self._command.reporting_overrides(self._runner.address),
        ]
        outcome = self._run_to_end(final_run.name, command, folder)
        summary = (
            RunFolder(folder.parent, folder.name).read_summary() if outcome.exit_code == ExitCode.FINISHED else None
        )
        print_line(f"{final_run.name}: {'done' if summary else outcome.reason}")
        return {"validation": summary and summary["validation"], "reason": None if summary else outcome.reason}

    def _test(self, winner: TrialRecord) -> dict[str, Any]:
        run_folder = self._folder.trials_dir / _trial_name(winner)
        output = self._folder.path / "test" / _trial_name(winner)
        command = ["evaluate", f"checkpoint={run_folder}", f"output={output}", *self._evaluation_overrides(winner)]
        outcome = self._run_to_end("test", command, output)
        evaluation = read_mapping(output / "evaluation.json") if outcome.exit_code == ExitCode.FINISHED else None
        if evaluation is None:
            return {"headline": None, "reason": outcome.reason}
        return {"headline": evaluation["headline"], "reason": None}

    def _run_to_end(self, job: str, command: list[str], folder: Path) -> RunOutcome:
        """Executes a run that the search does not stop early."""
        outcome = self._runner.run(job, command, folder, lambda _: CONTINUE)
        if outcome.exit_code == ExitCode.STORAGE:
            raise StorageError(f"{job} was stopped by a storage error: {outcome.reason}")
        return outcome

    def _evaluation_overrides(self, winner: TrialRecord) -> list[str]:
        """Returns the overrides that an evaluation needs again: targets (for user code), secrets and the device."""
        plan = self._compose_plan([*self._command.fixed_overrides, *format_overrides(winner.params)])
        arguments = {"data": plan.data.arguments(), "model": plan.model.arguments(), "loss": dict(plan.loss)}
        arguments["activation"] = plan.activation.arguments()
        targets = [
            f"{group}._target_={value}"
            for group, settings in arguments.items()
            for key, value in flatten(settings)
            if key.rpartition(".")[2] == "_target_"
        ]
        fixed_overrides = [override.lstrip("+") for override in self._command.fixed_overrides]
        secret_overrides = [
            override
            for override in fixed_overrides
            if redact_override(override) != override and override.partition(".")[0] in arguments
        ]
        return [
            *targets,
            *secret_overrides,
            *(override for override in fixed_overrides if override.startswith(("trainer=", "trainer.accelerator="))),
        ]


def _trial_name(winner: TrialRecord) -> str:
    return f"trial-{winner.number:04d}"
