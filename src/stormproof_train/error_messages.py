"""Any error as one sentence and an exit code."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException
from yaml import MarkedYAMLError

from stormproof.errors import NoGoodCheckpointError, StormproofError
from stormproof_train.config.conf_dir import conf_dir
from stormproof_train.errors import STORAGE_FAULTS, ExitCode, RunError, nearest
from stormproof_train.install_command import install

_TOLD_BY_WORDS = {  # mistakes that torch, Lightning and Hydra tell by an error of no kind of its own
    "more than 1 value per channel": (
        "a batch of one sample cannot be normalized by batch norm: set data.drop_last=true where it is an epoch's last "
        "batch, else data.batch_size above 1"
    ),
    "is out of bounds.": "data: a batch has a class label that is none ({}): they go from 0 to num_classes - 1",
    "`val_check_interval`": "trainer: {}",
    "configured in SLURM": "trainer: {}",
    "Only one of --run, --multirun": "{}",
}
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_SEVERAL = re.compile(r"Ambiguous value for argument '(.+)'")
_NOT_THERE = re.compile(r"(\w[\w ]*) conditioned on metric `?([\w/.]+)`? which is not available\. ([^\n]*)")
_KILLED_WORKER = re.compile(r"^DataLoader worker \(pid.*\) (is killed by signal|exited unexpectedly)")
_GROUP = re.compile(r"Available options in '([^']+)'")
_STRUCT = re.compile(r"Could not override '([^']+)'|Key '([^']+)' is not in struct")


def sentence_for(error: BaseException) -> tuple[str, ExitCode]:
    """What to tell the user, and the exit code.

    Args:
        error: what ended the run.
    """
    if isinstance(error, RunError):
        return str(error), error.exit_code
    if isinstance(error, NoGoodCheckpointError):
        return f"{error.problem}: put a copy back, or train under another name (name=…)", ExitCode(error.exit_code)
    if isinstance(error, StormproofError):
        return str(error), ExitCode(error.exit_code)
    if isinstance(error, KeyboardInterrupt):
        return "stopped by Ctrl-C", ExitCode.INTERRUPTED
    for describe, implicit in ((_killed_worker, True), (_mistake, False), (_storage_fault, True)):
        told = next(filter(None, map(describe, _causes(error, implicit=implicit))), None)
        if told:
            return told
    return f"ended by {type(error).__name__}: {_one_line(str(error))}", ExitCode.FAILED


def is_killed_worker(error: BaseException) -> bool:
    """Returns whether a run ended because one of its data loader workers was killed."""
    return any(map(_killed_worker, _causes(error, implicit=True)))


def _killed_worker(error: BaseException) -> tuple[str, ExitCode] | None:
    """Describes a loader worker that was killed. torch has no error of its own for it."""
    if not isinstance(error, RuntimeError) or not _KILLED_WORKER.search(str(error)):
        return None
    sentence = (
        f"a data loader worker was killed, possibly because memory ran out ({_one_line(str(error))}): the same command "
        "resumes the run. If this happens again, lower data.num_workers"
    )
    return sentence, ExitCode.START_AGAIN


def _storage_fault(error: BaseException) -> tuple[str, ExitCode] | None:
    if not isinstance(error, OSError) or error.errno not in STORAGE_FAULTS:
        return None
    where = f" ({error.filename})" if error.filename else ""
    way_out = "set runs_dir elsewhere" if error.errno not in FULL else "free some space or set runs_dir elsewhere"
    return f"{STORAGE_FAULTS[error.errno]}{where}: {way_out}", ExitCode.STORAGE


def _mistake(error: BaseException) -> tuple[str, ExitCode] | None:
    """A user's mistake that another library found, in our words."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        sentence = _unknown_choice(error)
    elif isinstance(error, HydraException | OmegaConfBaseException):
        sentence = _config_mistake(error)
    elif isinstance(error, MarkedYAMLError) and error.problem_mark:
        mark = error.problem_mark
        sentence = f"{mark.name}, line {mark.line + 1} cannot be read as YAML: {error.problem}"
    elif _NOT_THERE.search(str(error)):
        sentence = _metric_not_there(str(error))
    elif type(error).__name__ == "MisconfigurationException":  # Lightning's word for it
        sentence = f"trainer: {_one_line(str(error))}"
    else:
        sentence = next((sentence for words, sentence in _TOLD_BY_WORDS.items() if words in str(error)), "")
        sentence = sentence.format(_one_line(str(error)))
    return (sentence, ExitCode.USER_MISTAKE) if sentence else None


def _unknown_choice(error: MissingConfigException) -> str:
    asked = str(error.missing_cfg_file).removesuffix(".yaml")
    if asked.startswith("hydra/launcher/submitit_"):
        return f"hydra/launcher=submitit_slurm is not installed: {install('slurm')}"
    match = _GROUP.search(str(error))  # not there if it was in a list of choices
    group = match.group(1) if match else asked.partition("/")[0]
    choice = asked.removeprefix(f"{group}/")
    folder = conf_dir() / group
    options = {
        *(error.options or []),
        *(str(file.relative_to(folder).with_suffix("")) for file in folder.rglob("*.yaml")),
    }
    if not options or choice == asked:
        return f"there is no config {error.missing_cfg_file}"
    return f"there is no {group}={choice}; there is: {', '.join(nearest(choice, options))}"


def _config_mistake(error: Exception) -> str:
    text = str(error)
    if isinstance(error, OverrideParseException):
        return _unreadable(error.override or "", text)
    several = _SEVERAL.match(text)
    if several:
        return (
            f"{several.group(1).removeprefix('++')} has several values: a run takes one, and a sweep over them wants -m"
        )
    match = _STRUCT.search(text)
    if match:
        from stormproof_train.config.plan import KEYS, no_such_key  # noqa: PLC0415 (it imports torch, which takes a second)

        key = match.group(1) or match.group(2)
        if key in KEYS:  # a group, which was given something else than a word
            return f"{key}=… takes the name of a choice (--help lists all)"
        return no_such_key(key)
    return _one_line(text)


def _unreadable(override: str, told: str) -> str:
    asked = override.removeprefix("++")  # as a user types it: see overrides.py
    key, _, value = asked.partition("=")
    unreadable = f"{asked!r} cannot be read as group=choice or group.argument=value"
    if not value or value[0] in "[{'\"":
        return f"{unreadable}: {_one_line(told)}"
    return f"""{unreadable}: put a value with such signs into quotes within quotes, "{key}='{value}'\""""


def _metric_not_there(text: str) -> str:
    """Early stopping, or a schedule, looks at what a validation logs: it may be misspelt, or there was none yet."""
    who, metric, rest = _NOT_THERE.search(text).groups()  # pyright: ignore[reportOptionalMemberAccess] (asked before)
    if metric.startswith("val/") and "val/" not in rest:
        return (
            f"{who} looks at {metric}, and the run ends before its first validation: train for an epoch at least "
            "(trainer.max_steps, trainer.max_epochs), or validate earlier (trainer.val_check_interval)"
        )
    return f"callbacks: {_one_line(text)}"


def _one_line(text: str) -> str:
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    return lines[0] if lines else "no message"


def _causes(error: BaseException | None, *, implicit: bool = False) -> Iterator[BaseException]:
    """The error and its stated causes; with ``implicit``, what was being handled when it came up too.

    A full disk shows in whatever fails next. A mistake is only what was raised as one: an error in handling it is not.
    """
    while error is not None:
        yield error
        error = error.__cause__ or (error.__context__ if implicit else None)
