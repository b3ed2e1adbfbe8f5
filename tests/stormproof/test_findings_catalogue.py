"""The findings catalogue in docs/reference/findings documents every problem."""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from stormproof.health import rules
from stormproof.problem import Problem

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "docs" / "reference" / "findings"
HEADINGS = [
    "What it means", "How it is detected", "When the rule abstains", "Evidence", "Typical causes", "Fixes", "Example",
    "Accuracy",
]  # fmt: skip
NEEDS_TWO_RANKS = {Problem.REPLICAS_DIVERGED, Problem.SLOW_RANK}
DOWNGRADED = {Problem(rule.problem) for rule in rules.default_rules() if rule.is_obsolete is not None}


def _page(problem: Problem) -> str:
    return (PAGES / f"{problem.replace('_', '-')}.md").read_text(encoding="utf-8")


def _code(problem: Problem) -> str | None:
    match = re.search(r"```python\n(.+?)```", _page(problem), re.DOTALL)
    return None if match is None else match[1]


def _evidence_keys() -> Iterator[tuple[Problem, str]]:
    """Yields the evidence keys in the source of the rules."""
    for file in {*Path(rules.__file__).parent.glob("*.py")} - {Path(rules.__file__)}:
        for function in (node for node in ast.parse(file.read_text()).body if isinstance(node, ast.FunctionDef)):
            nodes = list(ast.walk(function))
            problems = {Problem(file.stem)}
            if function.name == "make_non_finite_finding":
                problems.add(Problem.NON_FINITE_DATA)
            dictionaries = [node for node in nodes if isinstance(node, ast.Dict)]
            keys = {key for dictionary in dictionaries for key in dictionary.keys if key is not None}
            keys |= {
                node.slice for node in nodes if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store)
            }
            for problem in problems:
                yield from ((problem, key) for key in map(_key_text, keys) if key)
    yield from ((problem, "until_step") for problem in DOWNGRADED)


def _key_text(key: ast.expr) -> str:
    """Returns a dictionary key in the source. A placeholder becomes ``<layer>``, and a sentence becomes empty."""
    if isinstance(key, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else "<layer>" for part in key.values)
    return key.value if isinstance(key, ast.Constant) and " " not in str(key.value) else ""


@pytest.mark.parametrize("problem", Problem)
def test_every_problem_has_a_page_with_all_headings(problem: Problem):
    text = _page(problem)
    assert text.startswith(f"# {problem.code}\n")
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == HEADINGS


def test_every_page_documents_a_problem():
    assert {path.stem for path in PAGES.glob("*.md")} - {"index"} == {problem.replace("_", "-") for problem in Problem}


def test_every_page_lists_the_evidence_of_its_rule():
    keys = {(problem, key) for problem, key in _evidence_keys()}
    assert len(keys) > 60
    missing = [f"{problem.code}: {key}" for problem, key in keys if f"| `{key}` |" not in _page(problem)]
    assert not missing


def test_pages_list_no_other_evidence():
    documented = {
        (problem, key) for problem in Problem for key in re.findall(r"^\| `(.+?)` \|", _page(problem), re.MULTILINE)
    }
    assert documented <= set(_evidence_keys())


def test_every_url_has_a_page():
    for problem in Problem:
        assert (PAGES / f"{problem.url.removesuffix('.html').rpartition('/')[2]}.md").exists()


def test_every_page_begins_with_the_docstring_of_its_problem(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(ROOT / "scripts")
    from docs_pages.findings import problem_summaries

    for problem, summary in problem_summaries().items():
        assert _page(problem).splitlines()[2] == summary


def test_the_index_lists_every_problem():
    codes = re.findall(r"^\| \[(\w+)\]", (PAGES / "index.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert codes == [problem.code for problem in Problem]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "problem", [problem for problem in Problem if _code(problem) and problem not in NEEDS_TWO_RANKS]
)
def test_the_example_reports_the_problem(
    problem: Problem, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.syspath_prepend(PAGES)
    monkeypatch.delitem(sys.modules, "classifier", raising=False)
    exec(_code(problem) or "", {"__name__": "__main__"})
    assert f": {problem.code}  " in capsys.readouterr().out
