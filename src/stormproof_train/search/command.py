"""``search``: finds the best settings, by as many workers as there are."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import filelock
import torch

from stormproof.checkpoint import atomic_write
from stormproof_train.console import print_table, say, shown
from stormproof_train.errors import StorageError, UserError
from stormproof_train.launch import launched
from stormproof_train.plan import RECOVERY, Plan
from stormproof_train.report.page import html
from stormproof_train.report.plain import plain
from stormproof_train.search.best import best
from stormproof_train.search.claims import Claims
from stormproof_train.search.final import Final
from stormproof_train.search.folder import LOCK_SECONDS, SearchFolder
from stormproof_train.search.judge import Judge
from stormproof_train.search.local_workers import HELPS, LocalWorkers
from stormproof_train.search.numbers import numbers_of
from stormproof_train.search.report.search_page import search_page
from stormproof_train.search.runner import Runner
from stormproof_train.search.trial_words import TrialWords
from stormproof_train.search.trials import Trials
from stormproof_train.search.words import Asked, Composer, check, read_words
from stormproof_train.search.worker import Worker


def run(words: Sequence[str], conf: Path) -> None:
    """Searches as the words say, until all is done, and prints what came of it.

    Args:
        words: after ``search``.
        conf: the folder of the application's configs.

    Raises:
        RunError: with the sentence for the user.
    """
    if math.prod(launched().values()) > 1:
        raise UserError("a search starts the ranks of its trials itself: leave torchrun or srun out")
    asked = read_words(words, conf)
    composer = Composer(conf, asked.flags)
    default = composer.plan(asked.fixed)
    _refuse_unfit(default)
    folder = SearchFolder(asked, default)
    if not folder.is_there:
        check(asked, composer)
    folder.begin()
    try:
        _work(asked, words, folder, composer, default)
    except filelock.Timeout as error:
        raise StorageError(
            f"{error.lock_file} has been locked for {LOCK_SECONDS:.0f} s: stop the worker that holds it"
        ) from error


def _work(asked: Asked, words: Sequence[str], folder: SearchFolder, composer: Composer, default: Plan) -> None:
    settings, trials, commands = asked.settings, _trials(asked, folder), TrialWords(asked, default, folder.name)
    judge, claims = Judge(settings, trials, folder), Claims(folder.claims)
    devices = default.trainer.arguments()["devices"]
    gpus = _gpus(default, devices)
    with Runner(folder, judge, several=devices not in {1, "1"}) as runner:
        final = Final(settings, trials, folder, commands, runner, claims, composer.plan, default.seed)
        _say_where(folder, trials)
        worker = Worker(settings, asked.space, folder, trials, commands, judge, runner, claims, gpus)
        with LocalWorkers(words, 1 if worker.is_over() else settings.workers):
            worker.work()
            winner = best(trials.all(), settings, trials.front())
            if winner is not None:
                final.work(winner)
    numbers = numbers_of(folder.name, settings, asked.space, trials, judge, final, asked.fixed)
    with folder.lock():
        _write(folder, numbers)
    if HELPS not in os.environ:
        tell(numbers, folder.path)


def _trials(asked: Asked, folder: SearchFolder) -> Trials:
    combinations = asked.space.combinations()
    if asked.settings.sampler == "grid" and combinations is None:
        endless = next(each.key for each in asked.space.parameters if each.values() is None)
        raise UserError(f"search.sampler=grid: {endless} is an interval, and a grid needs values: a,b,c or range(…)")
    with folder.lock():  # tables are made once, before the first asks
        trials = Trials(folder.storage(asked.settings.storage), folder.study, asked.settings, asked.space)
        if asked.settings.sampler == "grid":
            trials.enqueue((combinations or [])[: asked.settings.trials])
    return trials


def _refuse_unfit(default: Plan) -> None:
    if not any(target.path == RECOVERY for target in default.callbacks.values()):
        raise UserError(f"a trial that was interrupted goes on by {RECOVERY}: put it among the callbacks")
    if default.trainer.arguments()["num_nodes"] != 1:
        raise UserError("trainer.num_nodes: a trial runs on one node; several workers use several nodes")


def _gpus(default: Plan, devices: Any) -> int:
    accelerator = default.trainer.arguments()["accelerator"]
    if accelerator not in {"gpu", "cuda", "auto"} or not torch.cuda.is_available():
        return 0
    if isinstance(devices, list):
        return len(devices)
    return int(devices) if str(devices).isdigit() else torch.cuda.device_count()


def _say_where(folder: SearchFolder, trials: Trials) -> None:
    ended = sum(each.has_ended for each in trials.all())
    say(f"search {folder.path}" + (f": {ended} trials have ended" if ended else ""))


def _write(folder: SearchFolder, numbers: Mapping[str, Any]) -> None:
    with atomic_write(folder.path / "answer.json") as file:
        file.write(f"{json.dumps(plain(numbers), indent=1, allow_nan=False)}\n".encode())
    with atomic_write(folder.path / "report.html") as file:
        file.write(html(search_page(plain(numbers))).encode())


def tell(numbers: Mapping[str, Any], folder: Path) -> None:
    """Prints what a search has come to.

    Args:
        numbers: as :func:`stormproof_train.search.numbers.numbers_of` gives them.
        folder: of the search.
    """
    names = [each["name"] for each in numbers["objectives"]]
    told = [*_ranked(numbers), *(each for each in numbers["trials"] if each["state"] == "failed")][:20]
    keys = [each["key"] for each in numbers["space"]]
    rows = [
        (
            str(each["number"]), *(_value(each["params"].get(key, "")) for key in keys),
            *(map(shown, each["values"]) if each["values"] else [""] * len(names)), f"{each['steps']:,}",
            "" if each["state"] == "complete" else f"{each['state']}: {each['reason'] or ''}",
        )
        for each in told
    ]  # fmt: skip
    title = f"{numbers['name']}: {len(numbers['trials'])} trials, {numbers['totals']['steps']:,} steps, the best first"
    print_table(title, ("trial", *keys, *names, "steps", "what became of it"), rows)
    if len(told) < len(numbers["trials"]):
        say(f"{len(numbers['trials']) - len(told)} more are in the report")
    for sentence in sentences(numbers):
        say(sentence)
    say(f"report: {folder / 'report.html'}")


def sentences(numbers: Mapping[str, Any]) -> list[str]:
    """The answer in words."""
    if numbers["best"] is None:
        return ["no trial has come to its end and keeps to the constraints: allow more, or a larger budget"]
    found = [f"the best on validation: trial {numbers['best']}: {' '.join(numbers['words']['winner'])}"]
    final = numbers["final"]
    if final and final["difference"] is not None:
        ends = "" if final["low"] is None else f" (95% interval {shown(final['low'])} to {shown(final['high'])}"
        p_value = "" if final["p_value"] is None else f", paired t test p = {final['p_value']:.2g}"
        found.append(
            f"on {len(final['seeds'])} fresh seeds {final['metric']} of the winner minus that of the default is "
            f"{shown(final['difference'])}{ends}{p_value}{')' if ends else ''}"
        )
    if final:
        found += [f"warning: {each['run']} failed: {each['reason']}" for each in final["failed"]]
    if numbers["random"]:
        reached = numbers["random"]
        found.append(
            f"random search would be expected to reach {shown(reached['expected'])} with as many steps "
            f"({reached['runs']:.1f} whole runs; from {reached['pool']} trials drawn at random)"
        )
    if numbers["test"]:
        told = ", ".join(f"{name} {shown(each['value'])}" for name, each in numbers["test"].items())
        found.append(f"the winner's test, read once: {told}")
    elif numbers["tested"]:
        found.append(f"warning: the winner could not be tested: {numbers['tested']}")
    return found


def _ranked(numbers: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    sign = -1 if numbers["objectives"][0]["higher_is_better"] else 1
    complete = [each for each in numbers["trials"] if each["state"] == "complete"]
    stopped = [each for each in numbers["trials"] if each["state"] in {"pruned", "paused", "running"}]
    complete.sort(key=lambda each: (not each["feasible"], sign * each["values"][0]))
    stopped.sort(key=lambda each: (-len(each["curve"]), each["number"]))
    return [*complete, *stopped]


def _value(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
