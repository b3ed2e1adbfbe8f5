"""The page with the ``--help`` of both programs."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout, suppress
from unittest.mock import patch

from stormproof.cli.main import main as plugin_main
from stormproof_train.cli.main import main as application_main
from stormproof_train.cli.registry import DEFAULT, SUBCOMMANDS

WIDTH = "120"
"""Characters at which argparse wraps lines."""

HEAD = """\
# Command line

Both programs print these texts with `--help`. See also [exit codes](exit_codes.md) and [configuration](config.md).
In a checkout, `python train.py` is the same program as `stormproof-train`.
"""


def command_line_page() -> str:
    """Returns the page."""
    parts = [HEAD]
    for name in SUBCOMMANDS:
        words = [] if name == DEFAULT else [name]
        parts.append(_section("stormproof-train", words, _help(application_main, words)))
        if name == DEFAULT:
            parts.append(
                "With a choice, as in `python train.py data=diabetes --help`, the help continues with the arguments\n"
                "of all chosen options and their defaults.\n"
            )
    plugin_help = _help(plugin_main, [])
    parts.append(_section("stormproof", [], plugin_help))
    commands = re.findall(r"^    (\w+) ", plugin_help, re.MULTILINE)
    parts.extend(_section("stormproof", [name], _help(plugin_main, [name])) for name in commands)
    return "\n".join(parts)


def _section(program: str, words: Sequence[str], text: str) -> str:
    command = " ".join([program, *words])
    lines = "\n".join(line.rstrip() for line in text.strip().splitlines())
    return f"## `{command}`\n\n```text\n$ {command} --help\n{lines}\n```\n"


def _help(main: Callable[[Sequence[str]], int], words: Sequence[str]) -> str:
    output = io.StringIO()
    with patch.dict(os.environ, COLUMNS=WIDTH), redirect_stdout(output), suppress(SystemExit):
        main([*words, "--help"])
    return output.getvalue()
