"""Converts plain command-line overrides, ``key=value`` without ``+``, for Hydra."""

from __future__ import annotations

import re
from collections.abc import Container, Sequence
from itertools import pairwise

from stormproof_train.config.redaction import redact_override
from stormproof_train.errors import UserError

# Matches group.argument=value with any depth. Choices (activation=elu), plain settings (seed=1), overrides with one of
# Hydra's prefixes, and Hydra's own settings are not changed.
_OVERRIDE = re.compile(r"[+~]|[A-Za-z_][\w./@:]*=")
_ARGUMENT = re.compile(r"(?!hydra\.)[A-Za-z_]\w*(\.\w+)+=")

_WORD = re.compile(r"""'[^']*'|"[^"]*"|[\w./+$%*@:?|-]+(?: +[\w./+$%*@:?|-]+)*""")
"""A quoted value, or a value that needs no quotes except for letters that Hydra's grammar lacks."""

_OPTION_LIST = re.compile(r"(\w+)=\[(.*,.*)\]")
_MULTI_OPTION_GROUPS = {"augmentation", "callbacks", "experiment"}


def check_option_lists(argv: Sequence[str], groups: Container[str]) -> None:
    """Rejects lists such as ``activation=[relu,elu]``, of which Hydra would silently use the last option.

    Raises:
        UserError: If a group that accepts one option is set to a list.
    """
    for arg in argv:
        match = _OPTION_LIST.fullmatch(arg)
        if match and match.group(1) in groups and match.group(1) not in _MULTI_OPTION_GROUPS:
            group, options = match.groups()
            raise UserError(f"{arg}: a run has one {group}. To try several, use -m {group}={options.replace(' ', '')}")


def check_null_groups(argv: Sequence[str], groups: Container[str]) -> None:
    """Raises UserError for a group that is set to null, because Hydra's message does not name the group.

    Example:
        >>> check_null_groups(["model=null"], {"model"})
        Traceback (most recent call last):
        stormproof_train.errors.UserError: model=null: a group cannot be null. Choose an option (--help lists all).
    """
    for arg in argv:
        key, _, value = arg.partition("=")
        if key in groups and value == "null":
            raise UserError(f"{arg}: a group cannot be null. Choose an option (--help lists all).")


def describe_overridden(argv: Sequence[str]) -> list[str]:
    """Returns a warning for each setting that a later argument overrides with another value.

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
    """Lets submitit requeue a SLURM job at each time limit, unless the number is set.

    submitit does not requeue by default, because a restarted program may start from the beginning. Runs of this
    application resume.

    Example:
        >>> add_requeue_limit(["-m", "seed=1,2", "hydra/launcher=submitit_slurm"])[-1]
        'hydra.launcher.max_num_timeout=1000'
    """
    key, limit = "hydra.launcher.max_num_timeout", 1000
    is_set = any(arg.lstrip("+").startswith(f"{key}=") for arg in argv)
    uses_submitit = "hydra/launcher=submitit_slurm" in argv
    return [*argv, f"{key}={limit}"] if uses_submitit and not is_set else list(argv)


def normalize_overrides(argv: Sequence[str]) -> list[str]:
    """Allows ``group.argument=value`` for arguments that the YAML file of the group does not contain.

    YAML files contain only arguments that differ from the signature. Hydra rejects others unless the override begins
    with ``++`` (add or change). Overrides are moved before flags, because Hydra's parser rejects flags between them.
    Its grammar supports only ASCII letters, so values with other letters are quoted.

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
    """Quotes values with letters that Hydra's grammar lacks. Mappings and interpolations are left as they are.

    Example:
        >>> quote_values("data.path=/home/jürgen/a b.csv")
        "data.path='/home/jürgen/a b.csv'"
        >>> quote_values("data.features=[größe,age,'élan']")
        "data.features=['größe',age,'élan']"
    """
    key, equals, text = arg.partition("=")
    if text.isascii() or "{" in text:
        return arg
    quoted = _WORD.sub(lambda match: match[0] if match[0].isascii() or match[0][0] in "'\"" else repr(match[0]), text)
    return f"{key}{equals}{quoted}"
