"""Writes the generated files: ``__init__.pyi`` of losses and activations, pages and tables in docs, and dark figures.

The tables list the files in conf/. A file in conf/loss/ has comments for the columns: ``# formula:``, ``# source:`` and
``# when:``. Run this script after you draw a figure or change a public name, an option, an argument or a text of
``--help``. ``docs_pages/`` contains one module per kind of page.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml
from docs_pages.api import api_pages
from docs_pages.certify import PAGE as CERTIFY_PAGE
from docs_pages.certify import certify_page
from docs_pages.command_line import command_line_page
from docs_pages.config import config_page
from docs_pages.figures import svg_figures
from docs_pages.findings import PAGES, findings_index

from stormproof_train.losses import DEFAULT_LOSSES, LOSSES

ROOT = Path(__file__).resolve().parents[1]
CONF = ROOT / "conf"
TASKS = {"classification": "| word | of one sample |", "regression": "| word | of one target |"}
"""The header of each task's table in docs/reference/losses.md."""

REFERENCE = ROOT / "docs" / "reference"
LOSSES_PAGE = REFERENCE / "losses.md"


def generated() -> dict[Path, str]:
    """Returns the text of each file that this script writes."""
    packages = [import_module(f"stormproof_train.{name}") for name in ("activations", "losses")]
    stubs = {Path(str(package.__file__)).with_suffix(".pyi"): stub(package) for package in packages}
    return {
        **stubs,
        LOSSES_PAGE: docs_of_losses(),
        **{ROOT / path: text for path, text in api_pages().items()},
        REFERENCE / "command_line.md": command_line_page(),
        CERTIFY_PAGE: certify_page(),
        REFERENCE / "config.md": config_page(),
        PAGES / "index.md": findings_index(),
        **{ROOT / path: text for path, text in svg_figures().items()},
    }


def stub(package: ModuleType) -> str:
    """Returns the stub of a package that exports names of its modules with ``module_exports``."""
    source = ast.parse(inspect.getsource(package))
    imports = [node for node in source.body if isinstance(node, ast.ImportFrom)]
    modules = {name.name: str(node.module) for node in imports for name in node.names}
    exports = {name: getattr(package, name).__module__ for name in package.__all__ if name not in modules}
    modules = {name: module for name, module in {**modules, **exports}.items() if name in package.__all__}
    tables = [name for name in ("ACTIVATIONS", "LOSSES") if hasattr(package, name)]
    lines = ["from typing import Any", ""]
    for module in sorted(set(modules.values())):
        names = sorted((name for name in modules if modules[name] == module), key=_isort_key)
        lines.append(f"from {module} import {', '.join(names)}")
    lines += ["", *(f"{name}: dict[str, Any]" for name in tables), ""]
    lines += ["__all__ = [", *(f'    "{name}",' for name in sorted(modules, key=_isort_key)), "]"]
    return "\n".join(lines) + "\n"


def docs_of_losses() -> str:
    """Returns docs/reference/losses.md with a row for each file in conf/loss/."""
    text = LOSSES_PAGE.read_text()
    for task, header in TASKS.items():
        rows = "".join(_row(word) for word in losses(task))
        text, tables = re.subn(
            rf"({re.escape(header)}.*\n\|---.*\n)(?:\|.*\n)*", lambda match, rows=rows: match[1] + rows, text
        )
        assert tables == 1, f"docs/reference/losses.md must have one table that starts with {header}"
    return text


def losses(task: str) -> list[str]:
    """Returns the losses for a task, the default first."""
    entries = {file.stem: yaml.safe_load(file.read_text()) for file in (CONF / "loss").glob("*.yaml")}
    words = [word for word, entry in entries.items() if LOSSES[entry["_target_"].rpartition(".")[2]].task == task]
    return sorted(words, key=lambda word: (entries[word] != {"_target_": DEFAULT_LOSSES[task]}, word))


def _row(word: str) -> str:
    text = (CONF / "loss" / f"{word}.yaml").read_text()
    columns = dict(re.findall(r"^# (formula|source|when): (.+)$", text, re.MULTILINE))
    for column in ("formula", "when"):
        assert column in columns, f"conf/loss/{word}.yaml needs a comment `# {column}: …` for docs/reference/losses.md"
    formula = columns["formula"].replace("|", r"\|")
    return f"| `{word}` | {formula} | {columns.get('source', '')} | {columns['when']} |\n".replace("|  |", "| |")


def _isort_key(name: str) -> tuple[int, str]:
    """Constants first, then classes, then functions, as ruff sorts imports and ``__all__``."""
    return (0 if name.isupper() else 1 if name[0].isupper() else 2), name


def outdated() -> Iterator[Path]:
    """Yields the files that this script would change."""
    for path, text in generated().items():
        if not path.exists() or path.read_text() != text:
            yield path


def unexpected() -> Iterator[Path]:
    """Yields API pages that no longer have a public name."""
    expected = {ROOT / path for path in api_pages()}
    yield from (path for path in (REFERENCE / "api").glob("*.md") if path not in expected)


def main() -> None:
    texts: dict[Path, Any] = generated()
    for path in outdated():
        path.write_text(texts[path])
        print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
