"""Converts exceptions to a message for the user and an exit code."""

from __future__ import annotations

import errno
import re
import traceback
from collections.abc import Iterator

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException
from yaml import MarkedYAMLError

from stormproof.errors import NoGoodCheckpointError, StormproofError
from stormproof_train.config.conf_dir import conf_dir
from stormproof_train.config.settings import CONFIG_KEYS, unknown_key_message
from stormproof_train.errors import STORAGE_FAULTS, ExitCode, RunError, rank_by_similarity
from stormproof_train.install_command import install_command

_MESSAGES_BY_TEXT = {  # user errors for which torch, Lightning and Hydra have no exception class
    "more than 1 value per channel": (
        "batch norm needs more than one sample per batch. Set data.drop_last=true if this is the last batch of an "
        "epoch, else data.batch_size above 1."
    ),
    "is out of bounds.": "data: a batch has an invalid class label ({}). Labels must be from 0 to num_classes - 1.",
    **dict.fromkeys(
        ("tried to allocate", "Tried to allocate", "Unable to allocate"),
        "memory ran out ({}). Lower the size of the model (model.…) or data.batch_size, or use a larger machine.",
    ),
    "`val_check_interval`": "trainer: {}",
    "configured in SLURM": "trainer: {}",
    "Only one of --run, --multirun": "{}",
}
DISK_FULL_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_AMBIGUOUS_VALUE = re.compile(r"Ambiguous value for argument '(.+)'")
_MISSING_METRIC = re.compile(r"(\w[\w ]*) conditioned on metric `?([\w/.]+)`? which is not available\. ([^\n]*)")
_KILLED_WORKER = re.compile(r"^DataLoader worker \(pid.*\) (is killed by signal|exited unexpectedly)")
_CONFIG_GROUP = re.compile(r"Available options in '([^']+)'")
_UNKNOWN_KEY = re.compile(r"Could not override '([^']+)'|Key '([^']+)' is not in struct")


def describe_error(error: BaseException) -> tuple[str, ExitCode]:
    """Returns the message for the user and the exit code."""
    if isinstance(error, RunError):
        return str(error), error.exit_code
    if isinstance(error, NoGoodCheckpointError):
        message = f"{error.problem.rstrip('.')}. Restore a copy, or start a new run with another name (name=…)."
        return message, ExitCode(error.exit_code)
    if isinstance(error, StormproofError):
        return str(error), ExitCode(error.exit_code)
    if isinstance(error, KeyboardInterrupt):
        return "stopped by Ctrl-C", ExitCode.INTERRUPTED
    for describe, implicit in (
        (_describe_killed_worker, True),
        (_describe_user_error, False),
        (_describe_storage_error, True),
    ):
        description = next(filter(None, map(describe, _iter_causes(error, implicit=implicit))), None)
        if description:
            return description
    return f"ended by {type(error).__name__}: {_first_nonempty_line(str(error))}", ExitCode.FAILED


def is_killed_worker(error: BaseException) -> bool:
    """Returns True if a run ended because one of its data loader workers was killed."""
    return any(map(_describe_killed_worker, _iter_causes(error, implicit=True)))


def _describe_killed_worker(error: BaseException) -> tuple[str, ExitCode] | None:
    """Describes a killed data loader worker, for which torch has no exception class."""
    is_torch_error = isinstance(error, RuntimeError) and _KILLED_WORKER.search(str(error))
    if not is_torch_error and not _is_broken_worker_connection(error):
        return None
    message = (
        f"a data loader worker was killed, possibly because memory ran out ({_first_nonempty_line(str(error))}); the "
        "same command resumes the run. If this happens again, lower data.num_workers."
    )
    return message, ExitCode.START_AGAIN


def _is_broken_worker_connection(error: BaseException) -> bool:
    """Returns True if the connection to a loader worker broke, as happens if a worker is killed while it sends."""
    return isinstance(error, ConnectionError | EOFError) and any(
        frame.f_code.co_name == "_try_get_data" and frame.f_globals.get("__name__") == "torch.utils.data.dataloader"
        for frame, _ in traceback.walk_tb(error.__traceback__)
    )


def _describe_storage_error(error: BaseException) -> tuple[str, ExitCode] | None:
    if not isinstance(error, OSError) or error.errno not in STORAGE_FAULTS:
        return None
    path_text = f" ({error.filename})" if error.filename else ""
    fix = (
        "set runs_dir elsewhere" if error.errno not in DISK_FULL_ERRNOS else "free some space or set runs_dir elsewhere"
    )
    return f"{STORAGE_FAULTS[error.errno]}{path_text}: {fix}", ExitCode.STORAGE


def _describe_user_error(error: BaseException) -> tuple[str, ExitCode] | None:
    """Describes errors of the user that other libraries detect."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        message = _describe_unknown_option(error)
    elif isinstance(error, HydraException | OmegaConfBaseException):
        message = _describe_config_error(error)
    elif isinstance(error, MarkedYAMLError) and error.problem_mark:
        mark = error.problem_mark
        message = f"{mark.name}, line {mark.line + 1} cannot be read as YAML: {error.problem}"
    elif _MISSING_METRIC.search(str(error)):
        message = _describe_missing_metric(str(error))
    elif type(error).__name__ == "MisconfigurationException":  # Lightning's word for it
        message = f"trainer: {_first_nonempty_line(str(error))}"
    else:
        message = next((message for text, message in _MESSAGES_BY_TEXT.items() if text in str(error)), "")
        message = message.format(_first_nonempty_line(str(error)))
    return (message, ExitCode.USER_MISTAKE) if message else None


def _describe_unknown_option(error: MissingConfigException) -> str:
    config_name = str(error.missing_cfg_file).removesuffix(".yaml")
    if config_name.startswith("hydra/launcher/submitit_"):
        return f"hydra/launcher=submitit_slurm is not installed: {install_command('slurm')}"
    match = _CONFIG_GROUP.search(str(error))  # absent if the choice was in a list
    group = match.group(1) if match else config_name.partition("/")[0]
    choice = config_name.removeprefix(f"{group}/")
    folder = conf_dir() / group
    options = {
        *(error.options or []),
        *(str(file.relative_to(folder).with_suffix("")) for file in folder.rglob("*.yaml")),
    }
    if not options or choice == config_name:
        return f"the config {error.missing_cfg_file} does not exist"
    return f"{group}={choice} does not exist. Choices: {', '.join(rank_by_similarity(choice, options))}"


def _describe_config_error(error: Exception) -> str:
    text = str(error)
    if isinstance(error, OverrideParseException):
        return _describe_unreadable_override(error.override or "", text)
    ambiguous_match = _AMBIGUOUS_VALUE.match(text)
    if ambiguous_match:
        return (
            f"{ambiguous_match.group(1).removeprefix('++')} has several values, but a run needs one. Add -m for a "
            f"sweep over them."
        )
    match = _UNKNOWN_KEY.search(text)
    if match:
        key = match.group(1) or match.group(2)
        if key in CONFIG_KEYS:  # a group with a value that is not a name
            return f"{key}=… must be the name of a choice (--help lists all)"
        return unknown_key_message(key)
    return _first_nonempty_line(text)


def _describe_unreadable_override(override: str, message: str) -> str:
    argument = override.removeprefix("++")  # in the form that users type, see overrides.py
    key, _, value = argument.partition("=")
    problem = f"{argument!r} cannot be read as group=choice or group.argument=value"
    if not value or value[0] in "[{'\"":
        return f"{problem}: {_first_nonempty_line(message)}"
    return f"""{problem}. Put values with such characters into nested quotes: "{key}='{value}'\""""


def _describe_missing_metric(text: str) -> str:
    """Describes a metric that is missing for early stopping or a schedule: misspelled, or not logged yet."""
    component, metric, explanation = _MISSING_METRIC.search(text).groups()  # pyright: ignore[reportOptionalMemberAccess] (asked before)
    if metric.startswith("val/") and "val/" not in explanation:
        return (
            f"{component} monitors {metric}, but the run ends before its first validation. Train for at least one "
            "epoch (trainer.max_steps, trainer.max_epochs), or validate earlier (trainer.val_check_interval)."
        )
    return f"callbacks: {_first_nonempty_line(text)}"


def _first_nonempty_line(text: str) -> str:
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    return lines[0] if lines else "no message"


def _iter_causes(error: BaseException | None, *, implicit: bool = False) -> Iterator[BaseException]:
    """Yields the error and its explicit causes. With ``implicit``, also the errors that were being handled.

    A full disk can cause any later failure. For user errors only explicit causes count, because an error while handling
    them is not a user error.
    """
    while error is not None:
        yield error
        error = error.__cause__ or (error.__context__ if implicit else None)
