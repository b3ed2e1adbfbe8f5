"""The report as one HTML file without scripts or external requests."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Sequence
from html import escape as escape_html
from importlib.resources import files

from stormproof.page_style import read_page_style
from stormproof.replay.certification import Certification, Result
from stormproof.replay.output_text import escape
from stormproof.replay.reports.component_names import describe_component, describe_components
from stormproof.replay.reports.fixes import LIGHTNING_LINES, fixes_for
from stormproof.replay.reports.sentences import describe_fault, details, headline
from stormproof.replay.reports.text_report import summary

POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
"""Content security policy: the page may load nothing."""
DESCRIPTION = (
    "The command ran twice without faults. Then faults were injected, and the command was restarted after each. "
    "Each step of the restarted command was compared with the same step of the uninterrupted run."
)


def html_report(certification: Certification) -> str:
    """Returns the page."""
    style = read_page_style() + (files("stormproof.replay.reports") / "page.css").read_text(encoding="utf-8")
    return "\n".join(
        [
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
            f"<title>Resume test of {_text(certification.command)}</title>\n<style>{style}</style>\n</head>\n<body>",
            *_header(certification),
            "<main>",
            *_worst(certification),
            *_faults(certification),
            *_run(certification),
            "</main>\n</body>\n</html>\n",
        ]
    )


def _text(value: str | Sequence[str]) -> str:
    """Returns text, or a command, with HTML and control characters escaped."""
    text = value if isinstance(value, str) else shlex.join(value)
    return escape_html("\n".join(escape(line) for line in text.split("\n")))


def _code(text: str) -> str:
    """Returns text in which each part between backticks is code."""
    parts = text.split("`")
    return "".join(f"<code>{_text(part)}</code>" if index % 2 else _text(part) for index, part in enumerate(parts))


def _header(certification: Certification) -> Iterator[str]:
    tone = ("good", "✓", "exact") if certification.is_exact else ("bad", "✗", "not exact")
    yield f"<header>\n<h1>Resume test of <code>{_text(certification.command)}</code></h1>"
    yield f'<p class="tone {tone[0]}"><span aria-hidden="true">{tone[1]}</span> {tone[2]}</p>'
    yield f'<p class="verdict">{_text(summary(certification))}</p>'
    yield f"<p>{_text(DESCRIPTION)}</p>\n</header>"


def _worst(certification: Certification) -> Iterator[str]:
    worst = certification.worst
    if worst is None:
        return
    yield "<section>\n<h2>First difference</h2>"
    yield f"<p><strong>{_code(headline(worst.verdict))}</strong></p>"
    yield f"<p>Fault: {_text(describe_fault(worst.fault, worst.step))}.</p>"
    yield _table(("", ""), [(label, _code(text)) for label, text in details(worst.verdict)])
    components = (worst.verdict.component, *worst.verdict.others) if worst.verdict.component else ()
    if components:
        rows = [(describe_component(name), _code(fix)) for name, fix in fixes_for(components, certification.framework)]
        yield "<h2>Fixes</h2>" + _table(("component", f"fix ({certification.framework})"), rows)
        if certification.framework == "lightning":
            yield "<p>In a Lightning script, three lines restore most state:</p>"
            yield f"<pre><code>{_text(chr(10).join(LIGHTNING_LINES))}</code></pre>"
    yield "</section>"


def _faults(certification: Certification) -> Iterator[str]:
    yield "<section>\n<h2>Faults</h2>"
    heads = ("fault", "verdict", "resumed from step", "compared steps", "first difference", "seconds")
    yield _table(heads, [_row(result) for result in certification.results])
    if certification.skipped:
        rows = [(describe_fault(item.fault, item.fault.step), _text(item.reason)) for item in certification.skipped]
        yield "<h2>Faults that were not injected</h2>" + _table(("fault", "reason"), rows)
    yield "</section>"


def _row(result: Result) -> tuple[str, ...]:
    verdict = result.verdict
    tone = "good" if result.is_safe else "bad"
    component = describe_component(verdict.component) if verdict.component else ""
    difference = f"step {verdict.step}: {component}" if verdict.step else verdict.message
    return (
        describe_fault(result.fault, result.step),
        f'<span class="{tone}">{_text(verdict.kind.value)}</span>',
        str(verdict.resumed_step),
        str(verdict.compared_steps),
        _code(difference),
        f"{result.seconds:.1f}",
    )


def _run(certification: Certification) -> Iterator[str]:
    packages = ", ".join(f"{name} {version}" for name, version in sorted(certification.packages.items()))
    rows = [
        ("steps", str(certification.steps)),
        ("ranks", str(certification.ranks)),
        ("duration of the command", f"{certification.run_seconds:.1f} s"),
        ("duration of the certification", f"{certification.seconds:.1f} s"),
        ("packages", _text(packages)),
    ]
    if certification.every > 1:
        rows.append(("compared", f"1 of every {certification.every} steps"))
    if certification.ignored:
        rows.append(
            (
                "ignored, because they differ between two runs without faults",
                _code(describe_components(certification.ignored)),
            )
        )
    yield "<section>\n<h2>Run</h2>" + _table(("", ""), rows) + "</section>"


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a table. The first cell of a row is text, the others are HTML."""
    head = "".join(f'<th scope="col">{_text(cell)}</th>' for cell in heads)
    body = "\n".join(
        f'<tr><th scope="row">{_code(row[0])}</th>'
        + "".join(f'<td data-head="{_text(label)}">{cell}</td>' for label, cell in zip(heads[1:], row[1:], strict=True))
        + "</tr>"
        for row in rows
    )
    stacks = ' class="stacks"' if len(heads) > 3 else ""
    thead = f"<thead><tr>{head}</tr></thead>\n" if any(heads) else ""
    table = f"<table{stacks}>\n{thead}<tbody>\n{body}\n</tbody></table>"
    return f'<div class="scroll" tabindex="0" role="region" aria-label="table">{table}</div>'
