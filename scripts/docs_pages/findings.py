"""The index of the findings catalogue, from the enum of problems and its pages."""

from __future__ import annotations

import ast
import re
from itertools import pairwise
from pathlib import Path

import stormproof.problem
from docs_pages.paths import REFERENCE, ROOT
from stormproof.problem import Problem

PAGES = ROOT / REFERENCE / "findings"
MARKER = "<!-- scripts/generate.py writes the table below -->\n\n"


def page_path(problem: Problem) -> Path:
    """Returns the path of the page of a problem."""
    return PAGES / f"{problem.replace('_', '-')}.md"


def problem_summaries() -> dict[Problem, str]:
    """Returns the docstring of each member of the enum, in Markdown."""
    source = Path(stormproof.problem.__file__).read_text(encoding="utf-8")
    (body,) = (node.body for node in ast.parse(source).body if isinstance(node, ast.ClassDef))
    summaries: dict[Problem, str] = {}
    for assignment, docstring in pairwise(body):
        match assignment, docstring:
            case ast.Assign(targets=[ast.Name(id=name)]), ast.Expr(value=ast.Constant(value=str(text))):
                summaries[Problem[name]] = text.replace("``", "`")
    return summaries


def findings_index() -> str:
    """Returns the text of the index page with a current table.

    Raises:
        ValueError: If a page states no severity.
    """
    head, _, rest = (PAGES / "index.md").read_text(encoding="utf-8").partition(MARKER)
    _, separator, tail = rest.partition("\n## ")
    rows = []
    for problem, summary in problem_summaries().items():
        path = page_path(problem)
        severity = re.search(r"^\*\*Severity:\*\* (.+)\.$", path.read_text(encoding="utf-8"), re.MULTILINE)
        if severity is None:
            raise ValueError(f"{path} must have a line `**Severity:** …`.")
        rows.append(f"| [{problem.code}]({path.name}) | {severity[1]} | {summary} |")
    table = "\n".join(["| code | severity | meaning |", "|---|---|---|", *rows])
    return f"{head}{MARKER}{table}\n{separator}{tail}"
