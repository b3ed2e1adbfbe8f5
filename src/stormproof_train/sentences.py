"""Any error as one sentence and an exit code."""

from __future__ import annotations

import re
from collections.abc import Iterator

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException

from stormproof.errors import StormproofError
from stormproof_train.cli import conf_dir
from stormproof_train.errors import STORAGE_FAULTS, ExitCode, RunError, nearest

_TOLD_BY_WORDS = {  # mistakes that torch, Lightning and Hydra tell by an error of no kind of its own
    "more than 1 value per channel": (
        "a batch of one sample cannot be normalized by batch norm: set data.drop_last=true, or another "
        "data.batch_size, so that an epoch's last batch has more"
    ),
    "`val_check_interval`": "trainer: {}",
    "conditioned on metric": "callbacks: {}",
    "Config group override must be a string or a list": "a group cannot be null: choose one (--help lists all)",
    "Only one of --run, --multirun": "{}",
}
_GROUP = re.compile(r"Available options in '([^']+)'")
_STRUCT = re.compile(r"Could not override '([^']+)'|Key '([^']+)' is not in struct")


def sentence_for(error: BaseException) -> tuple[str, ExitCode]:
    """What to tell the user, and the exit code.

    Args:
        error: what ended the run.
    """
    if isinstance(error, RunError):
        return str(error), error.exit_code
    if isinstance(error, StormproofError):
        return str(error), ExitCode(error.exit_code)
    if isinstance(error, KeyboardInterrupt):
        return "stopped by Ctrl-C", ExitCode.INTERRUPTED
    told = next(filter(None, map(_mistake, _causes(error))), None)
    told = told or next(filter(None, map(_storage_fault, _causes(error, implicit=True))), None)
    if told:
        return told
    return f"ended by {type(error).__name__}: {_one_line(str(error))}", ExitCode.FAILED


def _storage_fault(error: BaseException) -> tuple[str, ExitCode] | None:
    if not isinstance(error, OSError) or error.errno not in STORAGE_FAULTS:
        return None
    where = f" ({error.filename})" if error.filename else ""
    return f"{STORAGE_FAULTS[error.errno]}{where}: free some space or set runs_dir elsewhere", ExitCode.STORAGE


def _mistake(error: BaseException) -> tuple[str, ExitCode] | None:
    """A user's mistake that another library found, in our words."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        sentence = _unknown_choice(error)
    elif isinstance(error, HydraException | OmegaConfBaseException):
        sentence = _config_mistake(error)
    elif type(error).__name__ == "MisconfigurationException":  # Lightning's word for it
        sentence = f"trainer: {_one_line(str(error))}"
    else:
        sentence = next((sentence for words, sentence in _TOLD_BY_WORDS.items() if words in str(error)), "")
        sentence = sentence.format(_one_line(str(error)))
    return (sentence, ExitCode.USER_MISTAKE) if sentence else None


def _unknown_choice(error: MissingConfigException) -> str:
    asked = str(error.missing_cfg_file).removesuffix(".yaml")
    match = _GROUP.search(str(error))
    if not match or not error.options:
        return f"there is no config {error.missing_cfg_file}"
    group = match.group(1)
    choice = asked.removeprefix(f"{group}/")
    folder = conf_dir() / group
    in_folders = [str(file.relative_to(folder).with_suffix("")) for file in folder.glob("*/**/*.yaml")]
    return f"there is no {group}={choice}; there is: {', '.join(nearest(choice, {*error.options, *in_folders}))}"


def _config_mistake(error: Exception) -> str:
    text = str(error)
    if isinstance(error, OverrideParseException):
        return f"{error.override!r} cannot be read as group=choice or group.argument=value: {_one_line(text)}"
    match = _STRUCT.search(text)
    if match:
        from stormproof_train.plan import no_such_key  # noqa: PLC0415 (it imports torch, which takes a second)

        return no_such_key(match.group(1) or match.group(2))
    return _one_line(text)


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
