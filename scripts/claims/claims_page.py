"""Writes the page about the claims."""

from __future__ import annotations

import re
import textwrap

from claims.claim import Claim, Effort, Result, Row, format_value, verdict_of
from claims.interval import Interval

HEAD = """\
# Claims about activations

An article about activation functions makes 29 claims that are also common elsewhere. This page tests each of them. The
article is in Chinese (禅与计算机程序设计艺术, sections 3.1 and 3.2); the paraphrases are ours.

A script writes this page and measures all numbers:

```console
$ pip install -e ".[train,docs,mnist1d]"
$ python scripts/measure_claims.py
```

Brackets contain 95% intervals over {seeds} seeds or a multiple of it. Each seed has its own weights, and for the
digits its own split. Methods are Student's t for means and for logarithms of ratios, Clopper and Pearson for shares,
Agresti and Min for differences of shares, and a bootstrap for ratios of spreads. Numbers without an interval do not
depend on random numbers. Differences are computed per seed. Differences of percentages are in points.

*torch* and *auto* are initializations: the default of torch's layers, and weights that preserve the size of the signal
(`initialization=auto`).

Verdicts follow from the intervals by fixed rules. Each row states the range that the claim requires. A row is satisfied
(yes) if the whole interval is inside the range. It is not satisfied (no) if the whole interval is outside. Otherwise it
is not settled (–). The note “(by …)” is a margin: an interval that overlaps the range by at most this margin counts as
outside. Rows without a range are for comparison.

- **true**: all rows are satisfied.
- **false**: no row is satisfied, or one is not and the claim is about all cases.
- **depends**: some rows are satisfied, others are not.
- **not settled**: an interval contains both answers.

| | claim | article | verdict |
| --- | --- | --- | --- |
"""
TAIL = """
## Not measured

- How widely an activation is used (“widely” for sigmoid, “commonly” for ReLU, 3.1.1 and 3.1.2), and how convenient it
  makes building models (3.2.2).
- Large networks. The networks are small and fully connected, and the tasks are digits, MNIST-1D and functions. A
  counterexample in these tasks is valid. A confirmation may not apply elsewhere.
- Multiple comparisons. Of a hundred 95% intervals, about five do not contain the true value, and no correction is made.

For the claims about the speed and robustness of leaky ReLU, about stability and about Maxout, a first pass was not
settled. Their numbers of seeds, learning rates and margins were then changed, so that these verdicts are weaker
evidence.
"""


def render_page(claims: list[Claim], results: list[Result], effort: Effort) -> str:
    verdicts = [verdict_of(claim, result.rows) for claim, result in zip(claims, results, strict=True)]
    lines = [HEAD.format(seeds=effort.seeds).rstrip("\n")]
    for number, (claim, verdict) in enumerate(zip(claims, verdicts, strict=True), 1):
        anchor = re.sub(r"[^\w\- ]", "", f"{number} {claim.title}".lower()).replace(" ", "-")
        lines.append(f"| {number} | [{claim.title}](#{anchor}) | {claim.sections} | {verdict.word} |")
    for number, (claim, result, verdict) in enumerate(zip(claims, results, verdicts, strict=True), 1):
        lines += [
            f"\n## {number}. {claim.title}\n",
            _wrap_paragraph(f"**The article** ({claim.sections}): {claim.says}") + "\n",
            _wrap_paragraph(f"**Experiment.** {claim.experiment}") + "\n",
            "| measured | | required | satisfied |\n| --- | --- | --- | --- |",
            *map(_format_row, result.rows),
            "\n" + _wrap_paragraph(f"**Verdict: {verdict.word}**{verdict.sentence} {claim.why}"),
        ]
        lines += ["\n" + _wrap_paragraph(f"Not decided: {claim.left_open}")] if claim.left_open else []
        if result.figure:
            lines.append(f"\n![{result.figure.caption}](../figures/claims_{result.figure.name}.svg)\n")
            lines.append(_wrap_paragraph(f"*{result.figure.caption}.*"))
    return "\n".join(lines) + "\n" + TAIL


def _wrap_paragraph(paragraph: str) -> str:
    return textwrap.fill(paragraph, 120, break_long_words=False, break_on_hyphens=False)


def _format_row(row: Row) -> str:
    satisfied = {True: "yes", False: "no", None: "–"}[row.is_satisfied] if row.need else ""
    needs = row.need.describe(row.form) if row.need else ""
    description = f"{row.name}{', ' if row.detail else ''}{row.detail}".replace("|", "\\|")
    return f"| {description} | {_format_value(row.value, row.form)} | {needs} | {satisfied} |"


def _format_value(value: Interval, form: str) -> str:
    mean, low, high = (format_value(number, form) for number in (value.mean, value.low, value.high))
    unit = " points" if form == "points" else ""
    return f"{mean}{unit} [{low}, {high}]" if value.drawn else f"{mean}{unit}"
