"""The end of a search: the winner and the default once more on fresh seeds, and the winner's test, read once."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stormproof_train.config.identity import flat
from stormproof_train.config.plan import Plan
from stormproof_train.config.redaction import without_secret
from stormproof_train.console import say
from stormproof_train.errors import ExitCode, StorageError
from stormproof_train.mapping_file import read_mapping
from stormproof_train.run.folder import RunFolder
from stormproof_train.search.claims import Claims
from stormproof_train.search.folder import SearchFolder
from stormproof_train.search.pruner import GO_ON
from stormproof_train.search.runner import Ended, Runner
from stormproof_train.search.settings import Settings
from stormproof_train.search.space import words_of
from stormproof_train.search.trial_command import TrialWords
from stormproof_train.search.trials import Record, Trials

DEFAULT = "default"


@dataclass(frozen=True)
class Again:
    """A run of the end.

    Attributes:
        who: ``default``, or the winner's ``trial-0007``.
        seed: of the run.
        params: those of the winner; none of the default.
    """

    who: str
    seed: int
    params: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Of its folder, and in the storage."""
        return f"{self.who}-seed-{self.seed}"


class Final:
    """What is done once, after the last trial.

    Args:
        settings: of the search.
        trials: all.
        folder: of the search.
        words: makes those of a run.
        runner: runs them.
        claims: of all workers.
        plan_of: of a run's words.
        seed: of the trials.
    """

    def __init__(
        self,
        settings: Settings,
        trials: Trials,
        folder: SearchFolder,
        words: TrialWords,
        runner: Runner,
        claims: Claims,
        plan_of: Callable[[list[str]], Plan],
        seed: int,
    ) -> None:
        self._settings, self._trials, self._folder, self._words = settings, trials, folder, words
        self._runner, self._claims, self._plan_of, self._seed = runner, claims, plan_of, seed

    def runs(self, winner: Record) -> list[Again]:
        """The runs on fresh seeds, in pairs."""
        seeds = [self._seed + each for each in range(1, self._settings.final_seeds + 1)]
        return [
            Again(who, seed, params)
            for seed in seeds
            for who, params in ((_name(winner), winner.params), (DEFAULT, {}))
        ]

    def results(self, winner: Record) -> dict[str, Any]:
        """By name of each run what came of it, where that is known; that of the test by ``test``."""
        names = [each.name for each in self.runs(winner)]
        found = {name: self._trials.shared(f"final/{name}") for name in names}
        found["test"] = self._trials.shared(f"test/{_name(winner)}")
        return {name: each for name, each in found.items() if each is not None}

    def work(self, winner: Record) -> None:
        """Does what other workers have not taken, and waits for them."""
        jobs: list[tuple[str, str, Callable[[], Any]]] = [
            (each.name, f"final/{each.name}", functools.partial(self._run, each)) for each in self.runs(winner)
        ]
        jobs.append(("test", f"test/{_name(winner)}", functools.partial(self._test, winner)))
        while open_jobs := [job for job in jobs if self._trials.shared(job[1]) is None]:
            if not any(self._does(*job) for job in open_jobs):
                self._runner.rest(1.0)

    def _does(self, name: str, key: str, job: Callable[[], Any]) -> bool:
        if not self._claims.take(name):
            return False
        try:
            if self._trials.shared(key) is None:  # another worker may have done it just now
                self._trials.share(key, job())
        finally:
            self._claims.give_back(name)
        return True

    def _run(self, again: Again) -> dict[str, Any]:
        folder = self._folder.final / again.name
        words = [*self._words.of(again.params, folder), f"seed={again.seed}", *self._words.asking(self._runner.address)]
        ended = self._ended(again.name, words, folder)
        summary = RunFolder(folder.parent, folder.name).finished() if ended.code == ExitCode.FINISHED else None
        say(f"{again.name}: {'done' if summary else ended.why}")
        return {"validation": summary and summary["validation"], "reason": None if summary else ended.why}

    def _test(self, winner: Record) -> dict[str, Any]:
        run = self._folder.trials / _name(winner)
        output = self._folder.path / "test" / _name(winner)
        words = ["evaluate", f"checkpoint={run}", f"output={output}", *self._repeated(winner)]
        ended = self._ended("test", words, output)
        evaluation = read_mapping(output / "evaluation.json") if ended.code == ExitCode.FINISHED else None
        if evaluation is None:
            return {"headline": None, "reason": ended.why}
        return {"headline": evaluation["headline"], "reason": None}

    def _ended(self, job: str, words: list[str], folder: Path) -> Ended:
        """What became of a run that nobody ends early."""
        ended = self._runner.run(job, words, folder, lambda _: GO_ON)
        if ended.code == ExitCode.STORAGE:
            raise StorageError(f"{job} could not go on: {ended.why}")
        return ended

    def _repeated(self, winner: Record) -> list[str]:
        """What an evaluation has to be told again: what may be built of a user's own, what was secret, the device."""
        plan = self._plan_of([*self._words.fixed, *words_of(winner.params)])
        arguments = {"data": plan.data.arguments(), "model": plan.model.arguments(), "loss": dict(plan.loss)}
        arguments["activation"] = plan.activation.arguments()
        targets = [
            f"{group}._target_={value}"
            for group, settings in arguments.items()
            for key, value in flat(settings)
            if key.rpartition(".")[2] == "_target_"
        ]
        own = [word.lstrip("+") for word in self._words.fixed]
        secret = [word for word in own if without_secret(word) != word and word.partition(".")[0] in arguments]
        return [*targets, *secret, *(word for word in own if word.startswith(("trainer=", "trainer.accelerator=")))]


def _name(winner: Record) -> str:
    return f"trial-{winner.number:04d}"
