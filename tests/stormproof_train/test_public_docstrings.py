"""Docstrings of public names: summary, arguments, errors, example and references."""

import importlib
import inspect
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

import stormproof
from stormproof_train import activations, initialization, losses, models
from stormproof_train.cli.registry import SUBCOMMANDS
from stormproof_train.config.conf_dir import conf_dir

WITHOUT_REFERENCES = {
    "Elementwise": "a wrapper",
    "activation_factory": "a converter of this package",
    "infer_feature_counts": "a probe of this package",
    "swap_activations": "an operation of this package",
    "LossProperties": "attributes of this package",
    "best_constant": "a reference value of this package",
    "check_fit": "a check of this package",
    "check_task": "a check of this package",
    "loss_properties": "attributes of this package",
}
"""Exports without a paper or a page of torch, and what they are."""


def _exports(package: ModuleType) -> dict[str, Any]:
    """Returns the exported classes and functions. Constants and type aliases have no docstring at run time."""
    exports = {name: getattr(package, name) for name in package.__all__}
    return {name: value for name, value in exports.items() if inspect.isclass(value) or inspect.isfunction(value)}


def _data_modules() -> dict[str, Any]:
    """Returns the targets of the files in conf/data/."""
    paths = [yaml.safe_load(file.read_text())["_target_"] for file in sorted((conf_dir() / "data").glob("*.yaml"))]
    return {path: _import(path) for path in paths}


def _import(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def _by_path(*exports: dict[str, Any]) -> dict[str, Any]:
    return {f"{value.__module__}.{name}": value for names in exports for name, value in names.items()}


APPLICATION = {
    **_by_path(*map(_exports, (activations, losses, initialization, models))),
    **_data_modules(),
    **{subcommand.module + ".run": _import(subcommand.module + ".run") for subcommand in SUBCOMMANDS.values()},
}
PLUGIN = _by_path(_exports(stormproof))
PUBLIC = {**PLUGIN, **APPLICATION}
REFERENCED = _by_path(*map(_exports, (activations, losses, initialization)))
EXAMPLES = {path: value for path, value in PUBLIC.items() if not path.endswith(".run")}


def _docstring(value: object) -> str:
    return inspect.getdoc(value) or ""


def _section(docstring: str, *titles: str) -> str:
    """Returns the lines of a Google-style section."""
    match = re.search(rf"^(?:{'|'.join(titles)}):\n((?:[ ].*\n|\n)*)", docstring + "\n", re.MULTILINE)
    return match[1] if match else ""


def _parameters(value: Any) -> list[str]:
    if inspect.isclass(value) and issubclass(value, BaseException) and value.__init__ is Exception.__init__:
        return []
    try:
        parameters = inspect.signature(value).parameters.values()
    except ValueError:
        return []
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [parameter.name for parameter in parameters if parameter.kind not in variadic]


def _is_enum(value: Any) -> bool:
    return inspect.isclass(value) and hasattr(value, "__members__")


@pytest.mark.parametrize("path", PUBLIC)
def test_the_summary_is_a_statement_in_one_line(path: str):
    summary, *rest = _docstring(PUBLIC[path]).split("\n")
    assert summary.endswith(".")
    assert not rest or not rest[0]
    assert not re.match(r"(?:What|Whether|How)\b", summary)


@pytest.mark.parametrize("path", [path for path, value in PUBLIC.items() if not _is_enum(value)])
def test_every_parameter_is_described(path: str):
    described = _section(_docstring(PUBLIC[path]), "Args", "Attributes")
    missing = [
        name for name in _parameters(PUBLIC[path]) if not re.search(rf"^\s+{name}\b.*: \S", described, re.MULTILINE)
    ]
    assert missing == []


@pytest.mark.parametrize("path", PUBLIC)
def test_raised_errors_are_described(path: str):
    source = re.sub(r"(?m)^\s*(?:>>>|\.\.\.) .*$", "", inspect.getsource(PUBLIC[path]))  # without the example
    if re.search(r"\braise |\bcheck_\w+\(", source):
        assert _section(_docstring(PUBLIC[path]), "Raises")


@pytest.mark.parametrize("path", EXAMPLES)
def test_there_is_an_example_that_runs_as_a_doctest(path: str):
    assert ">>> " in _section(_docstring(PUBLIC[path]), "Example", "Examples")


@pytest.mark.parametrize("path", [path for path in REFERENCED if path.rpartition(".")[2] not in WITHOUT_REFERENCES])
def test_a_method_names_its_source(path: str):
    assert _section(_docstring(PUBLIC[path]), "References").strip()


@pytest.mark.parametrize("name", SUBCOMMANDS)
def test_the_help_of_a_subcommand_has_an_example(name: str):
    subcommand = SUBCOMMANDS[name]
    module = importlib.import_module(subcommand.help_module or subcommand.module)
    assert ">>> print_help(" in _section(_docstring(module), "Example")


def test_the_table_of_exceptions_names_exports_only():
    assert WITHOUT_REFERENCES.keys() <= {path.rpartition(".")[2] for path in PUBLIC}


def test_conf_has_data_modules():
    assert any(Path(path).suffix == ".CSV" for path in _data_modules())
