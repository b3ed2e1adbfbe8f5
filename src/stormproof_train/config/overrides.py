"""Plain command-line overrides: any argument, no ``+``."""

from __future__ import annotations

import re
from collections.abc import Container, Sequence
from itertools import pairwise

from stormproof_train.config.redaction import without_secret
from stormproof_train.errors import UserError

# group.argument=value, and deeper; a choice (activation=elu), a plain setting (seed=1), an override that already
# carries one of Hydra's signs, and Hydra's own settings stay as they are.
_OVERRIDE = re.compile(r"[+~]|[A-Za-z_][\w./@:]*=")
_ARGUMENT = re.compile(r"(?!hydra\.)[A-Za-z_]\w*(\.\w+)+=")

_BARE = re.compile(r"[\w./+$%*@:?|-]+( +[\w./+$%*@:?|-]+)*")
"""A value that needs no quotes, apart from letters that Hydra's grammar lacks."""

_SEVERAL = re.compile(r"(\w+)=\[(.*,.*)\]")
_TAKE_SEVERAL = {"augmentation", "callbacks", "experiment"}


def refuse_several(arguments: Sequence[str], groups: Container[str]) -> None:
    """Refuses ``activation=[relu,elu]``, of which Hydra would take the last in silence.

    Args:
        arguments: the words of the command line.
        groups: of choices.

    Raises:
        UserError: if a group of which one choice is taken has a list of them.
    """
    for argument in arguments:
        match = _SEVERAL.fullmatch(argument)
        if match and match.group(1) in groups and match.group(1) not in _TAKE_SEVERAL:
            group, several = match.groups()
            raise UserError(
                f"{argument}: a run takes one {group}; to try several, -m {group}={several.replace(' ', '')}"
            )


def refuse_null(arguments: Sequence[str], groups: Container[str]) -> None:
    """Raises UserError for a group that is set to null, of which Hydra does not say which one it is.

    Example:
        >>> refuse_null(["model=null"], {"model"})
        Traceback (most recent call last):
        stormproof_train.errors.UserError: model=null: a group cannot be null: choose one (--help lists all)
    """
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key in groups and value == "null":
            raise UserError(f"{argument}: a group cannot be null: choose one (--help lists all)")


def overridden(arguments: Sequence[str]) -> list[str]:
    """Returns a warning for each setting that a later word overrides with another value.

    Example:
        >>> overridden(["activation=elu", "seed=1", "activation=relu"])
        ['activation=elu has no effect: activation=relu overrides it']
    """
    last: dict[str, str] = {}
    warnings = []
    for argument in reversed(arguments):
        key, sign, _ = argument.lstrip("+").partition("=")
        if sign and not argument.startswith("-") and last.setdefault(key, argument) != argument:
            warnings.append(f"{without_secret(argument)} has no effect: {without_secret(last[key])} overrides it")
    return warnings[::-1]


def refuse_dashes(arguments: Sequence[str], names: Container[str]) -> None:
    """Raises UserError for a setting that is written as an option.

    Args:
        arguments: Words of the command line.
        names: Groups and settings.

    Example:
        >>> refuse_dashes(["--activation", "elu"], {"activation"})
        Traceback (most recent call last):
        stormproof_train.errors.UserError: --activation: settings have no dashes: activation=elu
    """
    for argument, following in pairwise([*arguments, ""]):
        name, _, value = argument.lstrip("-").partition("=")
        if argument.startswith("-") and name.partition(".")[0] in names:
            raise UserError(f"{argument}: settings have no dashes: {name}={value or following or '…'}")


def requeued_as_often_as_needed(arguments: Sequence[str]) -> list[str]:
    """Lets submitit put a job back into SLURM's queue whenever its time runs out, unless a number is given.

    Its default is never, for programs that would begin anew each time. A run of this one goes on.

    Example:
        >>> requeued_as_often_as_needed(["-m", "seed=1,2", "hydra/launcher=submitit_slurm"])[-1]
        'hydra.launcher.max_num_timeout=1000'
    """
    key, often = "hydra.launcher.max_num_timeout", 1000
    given = any(argument.lstrip("+").startswith(f"{key}=") for argument in arguments)
    chosen = "hydra/launcher=submitit_slurm" in arguments
    return [*arguments, f"{key}={often}"] if chosen and not given else list(arguments)


def plain(arguments: Sequence[str]) -> list[str]:
    """Lets ``group.argument=value`` set an argument whether or not the group's YAML names it, in any script.

    YAML names only what differs from the signature, and Hydra refuses to set what it does not name unless the
    override begins with ``++`` (add or change). Overrides go before the flags: with a flag between two of them Hydra's
    parser would give up. Its grammar has ASCII letters only, so that values with others are put into quotes.

    Example:
        >>> plain(["activation=elu", "activation.alpha=0.5", "-m", "seed=1,2"])
        ['activation=elu', '++activation.alpha=0.5', 'seed=1,2', '-m']
        >>> plain(["name=läuft,plain"])
        ["name='läuft',plain"]
    """
    overrides = [quoted(argument) for argument in arguments if _OVERRIDE.match(argument)]
    flags = [argument for argument in arguments if not _OVERRIDE.match(argument)]
    return [*(f"++{override}" if _ARGUMENT.match(override) else override for override in overrides), *flags]


def quoted(argument: str) -> str:
    """Puts values with letters that Hydra's grammar lacks into quotes.

    Example:
        >>> quoted("data.path=/home/jürgen/a b.csv")
        "data.path='/home/jürgen/a b.csv'"
    """
    key, sign, values = argument.partition("=")
    several = values.split(",")
    if values.isascii() or not all(map(_BARE.fullmatch, several)):
        return argument
    return f"{key}{sign}{','.join(each if each.isascii() else repr(each) for each in several)}"
