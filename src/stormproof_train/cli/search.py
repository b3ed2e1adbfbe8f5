"""``search``: finds the best settings, by as many workers as there are."""

from __future__ import annotations

import math
import os
import random
import socket
from collections.abc import Sequence

import filelock
import torch
from optuna.exceptions import StorageInternalError

from stormproof_train.config.conf_dir import conf_dir
from stormproof_train.config.plan import RECOVERY, Plan
from stormproof_train.console import say
from stormproof_train.errors import ExitCode, StorageError, UserError, first_line
from stormproof_train.launcher import launched
from stormproof_train.search.arguments import Asked, Composer, read_words
from stormproof_train.search.best import best
from stormproof_train.search.claims import Claims
from stormproof_train.search.dry_run import check
from stormproof_train.search.final_evaluation import Final
from stormproof_train.search.folder import LOCK_SECONDS, SearchFolder
from stormproof_train.search.limits import raised
from stormproof_train.search.local_workers import HELPS, LocalWorkers
from stormproof_train.search.page import Page
from stormproof_train.search.pruner import Judge
from stormproof_train.search.results import numbers_of
from stormproof_train.search.runner import Runner
from stormproof_train.search.samplers import try_out
from stormproof_train.search.settings import TRIALS
from stormproof_train.search.summary import no_winner, tell
from stormproof_train.search.trial_command import TrialWords
from stormproof_train.search.trials import Trials
from stormproof_train.search.work_queue import WorkQueue
from stormproof_train.search.worker import Worker


def run(words: Sequence[str]) -> int:
    """Searches as the words say, until all is done, and prints what came of it.

    Args:
        words: after ``search``.

    Returns:
        The exit code.

    Raises:
        RunError: with the sentence for the user.
    """
    if math.prod(launched().values()) > 1:
        raise UserError("a search starts the ranks of its trials itself: leave torchrun or srun out")
    conf = conf_dir()
    asked = read_words(words, conf)
    composer = Composer(conf, asked.flags)
    default = composer.plan(asked.fixed)
    _refuse_unfit(default, asked.settings.workers)
    try_out(asked.settings, asked.space)
    folder = SearchFolder(asked, default)
    if not folder.is_there:
        check(asked, composer)
    try:
        folder.begin()
        _work(asked, words, folder, composer, default)
    except filelock.Timeout as error:
        raise StorageError(
            f"{error.lock_file} has been locked for {LOCK_SECONDS:.0f} s: stop the worker that holds it"
        ) from error
    except StorageInternalError as error:
        raise StorageError(
            f"search.storage does not answer: {first_line(error.__cause__ or error)}; the same command goes on"
        ) from error
    return ExitCode.FINISHED


def _work(asked: Asked, words: Sequence[str], folder: SearchFolder, composer: Composer, default: Plan) -> None:
    settings, trials, commands = asked.settings, _trials(asked, folder), TrialWords(asked, default, folder.name)
    judge, claims = Judge(settings, trials, folder), Claims(folder.claims)
    devices = default.trainer.arguments()["devices"]
    with Runner(folder, several=devices not in {1, "1"}) as runner:
        final = Final(settings, trials, folder, commands, runner, claims, composer.plan, default.seed)
        _say_where(folder, trials, claims)
        page = Page(folder, lambda: numbers_of(folder.name, settings, asked.space, trials, judge, final, asked.fixed))
        queue = WorkQueue(asked.space, folder, trials, judge, claims)
        with LocalWorkers(words, 1 if queue.is_over() else settings.workers):
            Worker(settings, folder, trials, commands, queue, judge, runner, page.refresh).work()
            winner = best(trials.all(), settings, trials.front())
            if winner is not None:
                final.work(winner)
    numbers = page.numbers()
    if HELPS not in os.environ:  # the table first: it is the answer, whatever becomes of the page
        tell(numbers)
        say(f"report: {page.write(numbers)}")
    if numbers["best"] is None:
        raise UserError(no_winner(numbers))


def _trials(asked: Asked, folder: SearchFolder) -> Trials:
    combinations = asked.space.combinations()
    if asked.settings.sampler == "grid" and combinations is None:
        endless = next(each.key for each in asked.space.parameters if each.values() is None)
        raise UserError(f"search.sampler=grid: {endless} is an interval, and a grid needs values: a,b,c or range(…)")
    with folder.lock():  # tables are made once, before the first asks
        trials = Trials(folder.storage, folder.study, asked.settings, asked.space)
        if not trials.all() and any(folder.trials.iterdir()):
            raise UserError(
                f"{folder.trials} holds trials that the search's storage does not know: put study.db and search.json "
                "back, or give this search another name (search.name=…)"
            )
        grid = combinations if asked.settings.sampler == "grid" and combinations else []
        trials.share("limits", raised(trials.shared("limits"), asked.settings, len(grid) or TRIALS))
        # mixed, so that the first of them are from all over; a kill may have left some for now
        for each in random.Random(asked.settings.seed).sample(grid, len(grid))[len(trials.all()) :]:  # noqa: S311 (no secret)
            trials.enqueue(each)
    return trials


def _refuse_unfit(default: Plan, workers: int) -> None:
    if not any(target.path == RECOVERY for target in default.callbacks.values()):
        raise UserError(f"a trial that was interrupted goes on by {RECOVERY}: put it among the callbacks")
    trainer, gpus = default.trainer.arguments(), torch.cuda.device_count()
    devices = int(trainer["devices"]) if str(trainer["devices"]).isdigit() else 1
    if gpus and trainer["accelerator"] != "cpu" and workers * devices > gpus and devices > 1:
        raise UserError(f"search.workers={workers} with trainer.devices={devices} each want more than {gpus} GPUs")
    if trainer["num_nodes"] != 1:
        raise UserError("trainer.num_nodes: a trial runs on one node; several workers use several nodes")


def _say_where(folder: SearchFolder, trials: Trials, claims: Claims) -> None:
    if HELPS in os.environ:
        return
    begun = sum(each.state != "waiting" for each in trials.all())
    say(f"search {folder.path}" + (f": {begun} trial{'s' * (begun != 1)} so far" if begun else ""))
    if folder.storage.startswith("sqlite") and claims.hosts() - {socket.gethostname()}:
        say("warning: SQLite may lose what workers of several machines write: start the search with search.storage=…")
