"""Tests of the prose checker. Forbidden words are the data here, so this file itself is not checked."""

import subprocess
import sys
from pathlib import Path

import check_prose
import pytest
from check_prose import problems, subject_problem

SCRIPT = Path(check_prose.__file__)
LONG_SENTENCE = "Word" + " word" * 30 + "."
SENTENCE = "Word" + " word" * 29 + "."


@pytest.fixture
def check(tmp_path: Path):
    def check(name: str, text: str) -> list[str]:
        path = tmp_path / name
        path.write_text(text)
        return [problem.removeprefix(f"{path}:") for problem in problems(path)]

    return check


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.py", '"""Told by a log."""\n', "1: docstring: 'Told', use: "),
        ("a.py", 'def f():\n    """Returns what was told."""\n', "2: docstring: 'told', use: "),
        ("a.py", "x = 1\n# stays for ever\n", "2: comment: 'for ever', use: permanently"),
        ("a.py", "x = 1  # nobody reads it\n", "1: comment: 'nobody', use: "),
        ("a.py", 'raise ValueError("the run goes on")\n', "1: string: 'goes on', use: continues, resumes"),
        ("a.py", 'raise ValueError(f"{x} goes on")\n', "1: string: 'goes on', use: "),
        ("a.py", 'x = "for ever"\n', "1: string: 'for ever', use: "),
        ("a.py", '"""It goes\non."""\n', "1: docstring: 'goes on', use: "),
        ("a.py", '"""Ends a training."""\n', "1: docstring: 'a training', use: a training run"),
        ("a.py", "def reckon_sizes(): ...\n", "1: name: 'reckon', use: "),
        ("a.py", "class QuietLoader: ...\n", "1: name: 'Quiet', use: "),
        ("a.md", "# Title\n\nThe run goes on\nuntil it ends.\n", "3: prose: 'goes on', use: "),
        ("a.md", "- First.\n- Look, the others.\n- It stands.\n", "2: prose: 'Look', use: "),
        ("a.md", "| a | b |\n|---|---|\n| fine | it stands |\n", "3: prose: 'stands', use: "),
        ("a.yaml", "# It stands.\nkey: value\n", "1: comment: 'stands', use: "),
        ("a.yaml", "key: value  # it stands\n", "1: comment: 'stands', use: "),
        ("a.sh", "run  # alone\n", "1: comment: 'alone', use: "),
        ("a.py", f'"""{LONG_SENTENCE}"""\n', "1: docstring: sentence of 31 words: Word word "),
        ("a.py", f"# {LONG_SENTENCE}\n", "1: comment: sentence of 31 words: "),
        ("a.md", f"Fine.\n\n{LONG_SENTENCE}\n", "3: prose: sentence of 31 words: "),
        ("a.py", 'def f():\n    """Whether it runs."""\n', "2: docstring begins with 'Whether': write a statement"),
        ("a.py", 'class A:\n    """How to run."""\n', "2: docstring begins with 'How': write a statement"),
    ],
)
def test_each_violation_is_one_problem_with_its_place(check, name: str, text: str, expected: str):
    (problem,) = check(name, text) if "Look" not in text else check(name, text)[:1]
    assert problem.startswith(expected)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.py", '"""Returns the held-out part of a held out set."""\n'),
        ("a.py", '"""Returns ``study.tell``."""\n'),
        ("a.py", 'x = "told"  # prose: allow (name of a column)\n'),
        ("a.py", 'def f():\n    """Told."""  # prose: allow (a quotation)\n'),
        ("a.py", '"""Clean folders, a holder and a meeting."""\n'),
        ("a.py", '"""Ends a training run after a training\nstep of a training script."""\n'),
        ("a.py", f'"""{SENTENCE} {SENTENCE}"""\n'),
        ("a.py", f'"""Doubles a value.\n\n>>> {LONG_SENTENCE}\n"""\n'),
        ("a.py", f'"""Runs.\n\n    python {LONG_SENTENCE}\n        {LONG_SENTENCE}\n\nText.\n"""\n'),
        ("a.py", f'"""{SENTENCE} ``x`` runs."""\n'),
        ("a.py", '"""Disabled if it is None."""\n'),
        ("a.md", f"{SENTENCE} 6 of them run.\n"),
        ("a.py", f'x = "{LONG_SENTENCE}"\n'),
        ("a.md", "```python\ntold = 1\n```\n"),
        ("a.md", "1. An item.\n\n   ```console\n   $ it goes on\n   ```\n"),
        ("a.md", "The setting `told` is a ``name``.\n"),
        ("a.md", f"{SENTENCE}\n- {SENTENCE}\n"),
        ("a.md", "It stands. <!-- prose: allow (a quotation) -->\n"),
        ("a.yaml", "told: 1\n"),
    ],
)
def test_code_allowed_lines_and_good_prose_have_no_problem(check, name: str, text: str):
    assert check(name, text) == []


@pytest.mark.parametrize(
    ("subject", "is_good"),
    [
        ("Fix lease expiry on clock jumps", True),
        ("A" * 65 + " change", True),
        ("A" * 66 + " change", False),
        ("Fix lease expiry.", False),
        ("fix lease expiry", False),
        ("Fix", False),
        ("", False),
        ("feat: add a lease", False),
    ],
)
def test_commit_subjects_are_short_capitalized_and_without_a_period(subject: str, is_good: bool):
    assert (subject_problem(subject) is None) is is_good


@pytest.mark.parametrize(("phrase", "suggestion"), check_prose.PHRASES.items())
def test_a_suggestion_contains_no_forbidden_phrase(phrase: str, suggestion: str):
    assert not check_prose.WORDS.search(suggestion), phrase


@pytest.mark.parametrize(("text", "returncode"), [("Fix lease expiry\n\nIt goes on.\n", 0), ("Fix lease expiry.\n", 1)])
def test_the_hook_checks_the_subject_and_returns_its_exit_code(tmp_path: Path, text: str, returncode: int):
    message = tmp_path / "message"
    message.write_text(text)
    done = subprocess.run([sys.executable, SCRIPT, "--message", message], check=False, capture_output=True, text=True)
    assert done.returncode == returncode
    assert ("commit subject" in done.stdout) is bool(returncode)


def test_the_command_prints_the_problems_of_the_given_files(tmp_path: Path):
    good, bad = tmp_path / "good.md", tmp_path / "bad.md"
    good.write_text("It runs.\n")
    bad.write_text("It stands and goes on.\n")
    done = subprocess.run([sys.executable, SCRIPT, good, bad], check=False, capture_output=True, text=True)
    assert done.returncode == 1
    assert [line.split(" ", 1)[0] for line in done.stdout.splitlines()] == [f"{bad}:1:"] * 2
