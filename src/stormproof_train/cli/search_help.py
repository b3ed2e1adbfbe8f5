"""Help of the subcommand ``search``: the available searches and all settings.

Example:
    >>> print_help([])  # doctest: +ELLIPSIS
    Searches for the best settings...
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Sequence

from stormproof_train.config.choices import find_config_dir, format_override, list_options
from stormproof_train.config.conf_dir import conf_dir
from stormproof_train.console import print_line
from stormproof_train.search.settings import Settings

USAGE = """Searches for the best settings, and saves everything in searches/<name>/.

  stormproof-train search activation=relu,elu 'optimizer.lr=tag(log,interval(1e-4,1e-1))' search.trials=50
  stormproof-train search … search.workers=2        two processes here; the same command elsewhere adds workers
  stormproof-train search … search=<name>           settings and space of conf/search/<name>.yaml

The arguments are those of a run. Settings with several values are searched: a,b,c or choice(…), range(1,10),
interval(0,0.5), tag(log,interval(1e-4,1e-1)), int(interval(16,512)), glob(*). An argument of a choice
(activation.alpha) is searched only where the choice has it. The same command resumes a search after any interruption.
A finished search prints its table."""
_ATTRIBUTE = re.compile(r"^ {4}(\w+): (.*(?:\n {8}.*)*)$", re.MULTILINE)


def print_help(argv: Sequence[str]) -> None:
    """Prints the help of the subcommand ``search``.

    Args:
        argv: Arguments of the subcommand. Only ``--config-dir`` is used.
    """
    extra_dir = find_config_dir(argv)
    print_line(USAGE)
    print_line("\nSearches")
    for name, description in list_options([conf_dir(), *([extra_dir] if extra_dir else [])], "search"):
        print_line(f"  {f'search={name}':<36}{description}")
    print_line("\nSettings")
    defaults = {field.name: field.default for field in dataclasses.fields(Settings)}
    for name, description in describe_settings().items():
        print_line(f"  {f'search.{name}={_format_default(defaults[name])}':<36}{description}")


def describe_settings() -> dict[str, str]:
    """Returns the description of each search setting from the docstring of :class:`Settings`."""
    matches = _ATTRIBUTE.findall(inspect.getdoc(Settings) or "")
    return {name: re.sub(r"\s+", " ", text).replace("``", "").removesuffix(".") for name, text in matches}


def _format_default(value: object) -> str:
    return format_override(list(value) if isinstance(value, tuple) else value)
