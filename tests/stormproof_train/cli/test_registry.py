import ast
from importlib.util import find_spec
from pathlib import Path

import pytest

from stormproof_train.cli.registry import SUBCOMMANDS


def _functions(module: str) -> set[str]:
    spec = find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    return {node.name for node in ast.parse(Path(spec.origin).read_text()).body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("name", SUBCOMMANDS)
def test_a_registered_module_has_an_entry_function_and_help(name: str):
    subcommand = SUBCOMMANDS[name]
    assert "run" in _functions(subcommand.module)
    assert "print_help" in _functions(subcommand.help_module or subcommand.module)
