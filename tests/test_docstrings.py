"""Every example in the packages' docstrings, run as it stands."""

import doctest
import importlib
import pkgutil
import tempfile
from pathlib import Path

import pytest

import stormproof
import stormproof_train


def _failed(name: str) -> None:
    raise ImportError(name)


MODULES = [
    name
    for package in (stormproof, stormproof_train)
    for name in (
        package.__name__,
        *(module.name for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.", onerror=_failed)),
    )
]


def test_all_modules_are_found():
    files = [file for package in (stormproof, stormproof_train) for file in Path(package.__path__[0]).rglob("*.py")]
    assert len(MODULES) == len(set(MODULES)) == len(files)


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_give_what_they_say(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    results = doctest.testmod(importlib.import_module(name))
    assert results.failed == 0, capsys.readouterr().out


def test_there_are_examples_to_run():
    finder = doctest.DocTestFinder(exclude_empty=True)
    found = [test for name in MODULES for test in finder.find(importlib.import_module(name)) if test.examples]
    assert len(found) >= 8
