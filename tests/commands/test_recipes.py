"""Follows the recipes of CONTRIBUTING.md: writes their files into a copy of the repository and runs them."""

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.support.forked_command import ROOT, Command

FIT = """
from stormproof.health.observations.losses import Losses
from stormproof.health.record import Record
from stormproof.health.rule_set import RuleSet
from stormproof.health.rules import default_rules

rules = RuleSet(default_rules())
for finding in rules.find_root_causes(rules.apply(Record(step=1, losses=Losses(first=(1e9,)))).findings):
    print(f"{finding.problem}: {finding.advice}")
"""
RECIPES = (ROOT / "CONTRIBUTING.md").read_text().partition("## Recipes")[2]


def _code(path: str) -> str:
    """Returns the code block of CONTRIBUTING.md whose first line is a comment with this path."""
    blocks = re.findall(r"^ *```(?:python|yaml)\n(.*?)^ *```$", RECIPES, re.DOTALL | re.MULTILINE)
    first_line, code = f"# {path}\n", map(textwrap.dedent, blocks)
    (block,) = [block for block in code if block.startswith(first_line)]
    return block.removeprefix(first_line)


class Copy:
    """A copy of the repository."""

    def __init__(self, folder: Path, *others: str) -> None:
        self.folder = folder
        for name in ("src", "callbacks", "conf", "train.py", *others):
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy2
            copy(ROOT / name, folder / name)

    def add(self, *paths: str) -> None:
        for path in paths:
            (self.folder / path).write_text(_code(path))

    def insert(self, path: str, table: str) -> None:
        file, entry = self.folder / path, _code(f"{path}: {table}").rstrip(",\n")
        text, inserted = re.subn(
            rf"^({table}\b.*[\[{{(])$",
            lambda match: f"{match[1]}\n{entry},",
            file.read_text(),
            flags=re.MULTILINE,
        )
        assert inserted == 1
        file.write_text(text)

    def run(self, *words: str) -> str:
        """Runs Python and returns what it prints."""
        roots = os.pathsep.join(str(self.folder / name) for name in ("src", "callbacks"))
        environment = {**os.environ, "PYTHONPATH": roots}
        done = subprocess.run(
            [sys.executable, *words],
            cwd=self.folder,
            env=environment,
            timeout=200,
            check=False,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout


def test_a_subcommand_is_a_module_and_an_entry_of_the_registry(tmp_path: Path):
    copy = Copy(tmp_path)
    copy.add("src/stormproof_train/cli/sizes.py")
    copy.insert("src/stormproof_train/cli/registry.py", "SUBCOMMANDS")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "file").write_bytes(bytes(1234))
    assert copy.run("train.py", "sizes", "runs") == "runs: 1,234 bytes\n"
    assert copy.run("train.py", "sizes", "--help").startswith("stormproof-train sizes runs/<name> …")


@pytest.mark.slow
def test_an_activation_and_a_loss_are_each_a_module_and_an_option(tmp_path: Path):
    copy = Copy(tmp_path, "README.md", "CONTRIBUTING.md", "docs", "scripts", "tests", "conftest.py", "pyproject.toml")
    activation, loss = "growing_cosine", "charbonnier"
    copy.add(
        f"src/stormproof_train/activations/{activation}.py",
        f"conf/activation/{activation}.yaml",
        f"src/stormproof_train/losses/{loss}.py",
        f"conf/loss/{loss}.yaml",
    )
    words = ["data=diabetes", f"activation={activation}", f"loss={loss}", "logger=none", "report=false", "name=run"]
    copy.run("train.py", *words, "trainer.max_epochs=1")
    assert json.loads((tmp_path / "runs/run/run.json").read_text())["status"] == "finished"

    changed = copy.run("scripts/generate.py").split()
    package = "src/stormproof_train"
    stubs = [f"{package}/activations/__init__.pyi", f"{package}/losses/__init__.pyi"]
    reference = [f"docs/reference/{page}.md" for page in ("api/activations", "api/losses", "command_line", "config")]
    assert changed == [*stubs, "docs/reference/losses.md", *reference]

    tests = "tests/stormproof_train"
    values = [f"{tests}/activations/test_formulas.py", f"{tests}/losses/test_loss_values.py"]
    copy.insert(values[0], "FORMULAS")
    copy.insert("tests/support/loss_references.py", "REGRESSION_CASES")
    output = copy.run("-m", "pytest", "-n", "0", "-v", *values, "-k", f"{activation} or {loss}")
    passed = re.findall(r"::test_(\w+)\[\w+\] PASSED", output)
    assert "an_activation_is_its_formula_with_the_right_gradient_and_width_and_is_finite_everywhere" in passed
    assert {"a_loss_has_a_reference", "the_value_for_numbers_is_that_of_the_formula"} <= {*passed}


@pytest.mark.slow
def test_a_diagnosis_rule_is_a_module_and_a_problem_with_a_sentence(tmp_path: Path):
    copy = Copy(tmp_path)
    copy.add("callbacks/stormproof/health/rules/huge_initial_loss.py")
    copy.insert("callbacks/stormproof/finding_sentences.py", "TEMPLATES")
    anchor, code = '    NON_FINITE_DATA = "non_finite_data"\n', _code("callbacks/stormproof/problem.py: Problem")
    file = tmp_path / "callbacks/stormproof/problem.py"
    text = file.read_text()
    assert text.count(anchor) == 1
    file.write_text(text.replace(anchor, textwrap.indent(code.rstrip(), "    ") + f"\n{anchor}"))
    (tmp_path / "fit.py").write_text(FIT)
    assert copy.run("fit.py").splitlines()[-1] == "huge_initial_loss: Standardize the targets."


def test_a_callback_of_a_user_receives_what_its_signature_names(command: Command, tmp_path: Path):
    (tmp_path / "mine.py").write_text(_code("mine.py"))
    (line,) = re.findall(r"^\$ python train.py (callbacks\.mine\..*)$", RECIPES, re.MULTILINE)
    done = command(*line.split(), "callbacks=none", "name=run", "trainer.max_epochs=1")
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"[0-9a-f]{8} done", (tmp_path / "runs/run/notes.txt").read_text())
