"""Composes the training commands of the tutorials and how-to guides, without running them."""

import re
import shlex

import pytest

from stormproof_train.config.overrides import normalize_overrides
from tests.support.forked_command import ROOT
from tests.support.hydra_configs import compose_plan

COMMAND = re.compile(
    r"^ *\$ (?:[A-Z]+=\S+ )*(?:python train\.py|scripts/torchrun\.sh|sbatch .*train\.sbatch) (.*)$", re.MULTILINE
)
SUBCOMMANDS = {"compress", "evaluate", "predict", "report", "search"}
OWN_PARTS = ("mine.", "my_")
"""Marks commands with parts of a user, which do not exist here."""


def _documented_commands() -> list[str]:
    """Returns the arguments of each command that trains a single run with shipped parts."""
    pages = [path for folder in ("tutorials", "how-to") for path in sorted((ROOT / "docs" / folder).glob("*.md"))]
    text = "\n".join(path.read_text().replace("\\\n", "") for path in pages)
    commands = {" ".join(shlex.split(line, comments=True)): None for line in COMMAND.findall(text)}
    return [
        line
        for line in commands
        if line.split()[0] not in {*SUBCOMMANDS, "-m"} and not any(f"={part}" in line for part in OWN_PARTS)
    ]


def test_commands_are_documented():
    assert len(_documented_commands()) > 15


@pytest.mark.slow
@pytest.mark.parametrize("arguments", _documented_commands())
def test_a_documented_command_has_only_known_options(arguments: str):
    compose_plan(*normalize_overrides(shlex.split(arguments)))
