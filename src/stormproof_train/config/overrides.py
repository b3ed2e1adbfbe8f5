"""Plain command-line overrides: any argument, no ``+``."""

from __future__ import annotations

import re
from collections.abc import Container, Sequence
from itertools import pairwise

from stormproof_train.config.redaction import redact_override
from stormproof_train.errors import UserError

# group.argument=value, and deeper; a choice (activation=elu), a plain setting (seed=1), an override that already
# carries one of Hydra's signs, and Hydra's own settings stay as they are.
_OVERRIDE = re.compile(r"[+~]|[A-Za-z_][\w./@:]*=")
_ARGUMENT = re.compile(r"(?!hydra\.)[A-Za-z_]\w*(\.\w+)+=")

_UNQUOTED_VALUE = re.compile(r"[\w./+$%*@:?|-]+( +[\w./+$%*@:?|-]+)*")
"""A value that needs no quotes, apart from letters that Hydra's grammar lacks."""

_OPTION_LIST = re.compile(r"(\w+)=\[(.*,.*)\]")
_MULTI_OPTION_GROUPS = {"augmentation", "callbacks", "experiment"}


def check_option_lists(argv: Sequence[str], groups: Container[str]) -> None:
    """Refuses ``activation=[relu,elu]``, of which Hydra would take the last in silence.

    Args:
        argv: the words of the command line.
        groups: of choices.

    Raises:
        UserError: if a group of which one choice is taken has a list of them.
    """
    for arg in argv:
        match = _OPTION_LIST.fullmatch(arg)
        if match and match.group(1) in groups and match.group(1) not in _MULTI_OPTION_GROUPS:
            group, options = match.groups()
            raise UserError(f"{arg}: a run takes one {group}; to try several, -m {group}={options.replace(' ', '')}")


def check_null_groups(argv: Sequence[str], groups: Container[str]) -> None:
    """Raises UserError for a group that is set to null, of which Hydra does not say which one it is.

    Example:
        >>> check_null_groups(["model=null"], {"model"})
        Traceback (most recent call last):
        stormproof_train.errors.UserError: model=null: a group cannot be null: choose one (--help lists all)
    """
    for arg in argv:
        key, _, value = arg.partition("=")
        if key in groups and value == "null":
            raise UserError(f"{arg}: a group cannot be null: choose one (--help lists all)")


def describe_overridden(argv: Sequence[str]) -> list[str]:
    """Returns a warning for each setting that a later word overrides with another value.

    Example:
        >>> describe_overridden(["activation=elu", "seed=1", "activation=relu"])
        ['activation=elu has no effect: activation=relu overrides it']
    """
    last_args: dict[str, str] = {}
    warnings = []
    for arg in reversed(argv):
        key, equals, _ = arg.lstrip("+").partition("=")
        if equals and not arg.startswith("-") and last_args.setdefault(key, arg) != arg:
            warnings.append(f"{redact_override(arg)} has no effect: {redact_override(last_args[key])} overrides it")
    return warnings[::-1]


def check_dashes(argv: Sequence[str], names: Container[str]) -> None:
    """Raises UserError for a setting that is written as an option.

    Args:
        argv: Words of the command line.
        names: Groups and settings.

    Example:
        >>> check_dashes(["--activation", "elu"], {"activation"})
        Traceback (most recent call last):
        stormproof_train.errors.UserError: --activation: settings have no dashes: activation=elu
    """
    for arg, next_arg in pairwise([*argv, ""]):
        name, _, value = arg.lstrip("-").partition("=")
        if arg.startswith("-") and name.partition(".")[0] in names:
            raise UserError(f"{arg}: settings have no dashes: {name}={value or next_arg or '…'}")


def add_requeue_limit(argv: Sequence[str]) -> list[str]:
    """Lets submitit put a job back into SLURM's queue whenever its time runs out, unless a number is given.

    Its default is never, for programs that would begin anew each time. A run of this one goes on.

    Example:
        >>> add_requeue_limit(["-m", "seed=1,2", "hydra/launcher=submitit_slurm"])[-1]
        'hydra.launcher.max_num_timeout=1000'
    """
    key, limit = "hydra.launcher.max_num_timeout", 1000
    is_set = any(arg.lstrip("+").startswith(f"{key}=") for arg in argv)
    uses_submitit = "hydra/launcher=submitit_slurm" in argv
    return [*argv, f"{key}={limit}"] if uses_submitit and not is_set else list(argv)


def normalize_overrides(argv: Sequence[str]) -> list[str]:
    """Lets ``group.argument=value`` set an argument whether or not the group's YAML names it, in any script.

    YAML names only what differs from the signature, and Hydra refuses to set what it does not name unless the
    override begins with ``++`` (add or change). Overrides go before the flags: with a flag between two of them Hydra's
    parser would give up. Its grammar has ASCII letters only, so that values with others are put into quotes.

    Example:
        >>> normalize_overrides(["activation=elu", "activation.alpha=0.5", "-m", "seed=1,2"])
        ['activation=elu', '++activation.alpha=0.5', 'seed=1,2', '-m']
        >>> normalize_overrides(["name=läuft,plain"])
        ["name='läuft',plain"]
    """
    overrides = [quote_values(arg) for arg in argv if _OVERRIDE.match(arg)]
    flags = [arg for arg in argv if not _OVERRIDE.match(arg)]
    return [*(f"++{override}" if _ARGUMENT.match(override) else override for override in overrides), *flags]


def quote_values(arg: str) -> str:
    """Puts values with letters that Hydra's grammar lacks into quotes.

    Example:
        >>> quote_values("data.path=/home/jürgen/a b.csv")
        "data.path='/home/jürgen/a b.csv'"
    """
    key, equals, text = arg.partition("=")
    parts = text.split(",")
    if text.isascii() or not all(map(_UNQUOTED_VALUE.fullmatch, parts)):
        return arg
    return f"{key}{equals}{','.join(part if part.isascii() else repr(part) for part in parts)}"
