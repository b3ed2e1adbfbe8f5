"""The page: nothing on it that was measured is written by hand."""

from __future__ import annotations

import re
import textwrap

from claims.claim import Claim, Effort, Result, Row, format_value, verdict_of
from claims.interval import Interval

HEAD = """\
# What people ask about activations

What an article says of activation functions, claim by claim, each put to a test. The article (禅与计算机程序设计艺术,
in Chinese; its sections 3.1 and 3.2) says in one place what many say; the paraphrases are ours.

This page is written by a script, and no measured number on it by hand:

```console
$ pip install -e ".[train,docs,mnist1d]"
$ python scripts/measure_claims.py
```

In brackets is the 95% interval over {seeds} seeds or a multiple of it, each with weights of its own, and for the digits
a split of its own: Student's t for means, of logarithms for ratios; Clopper and Pearson for shares, Agresti and Min for
their differences; a bootstrap for ratios of spreads. Numbers without an interval are computed without chance.
Differences are taken within a seed; those of percentages are in points. *torch* and *auto* are initializations: what
torch's layers do by themselves, and weights that keep the size of the signal (`initialization=auto`).

The verdict follows from the intervals, by rules that the script holds. Each line of a table says in which range the
claim needs the number. The line *holds* (yes) where the whole interval lies inside the range, it does not (no) where it
lies outside, and else it is not settled (–). “(by …)” is what is too small to matter: an interval that reaches into the
range by that at most counts as outside. Lines without a range are there to compare with, and decide nothing.

- **true**: all lines hold. **false**: none does; a claim about all cases is false with one exception.
- **depends**: some hold and some do not. **not settled**: an interval holds both answers.

| | claim | article | verdict |
| --- | --- | --- | --- |
"""
TAIL = """
## What is not measured

How widely an activation is used (sigmoid “widely”, ReLU “commonly”, 3.1.1 and 3.1.2), and how convenient it makes the
building of models (3.2.2), are not matters of measurement. Networks here are small and fully connected, and their tasks
are the digits, MNIST-1D and functions: an exception found there is one, and what holds there need not hold everywhere.
No correction is made for asking so many questions at once: of a hundred intervals, some five miss the truth.
For the claims on leaky ReLU's speed and robustness, on stability and on Maxout the number of seeds, the learning rates
and what is too small to matter were set anew after a first pass that left them unsettled: these verdicts are weaker
evidence than the others.
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
            "| measured | | the claim needs | holds |\n| --- | --- | --- | --- |",
            *map(_format_row, result.rows),
            "\n" + _wrap_paragraph(f"**Verdict: {verdict.word}**{verdict.sentence} {claim.why}"),
        ]
        lines += ["\n" + _wrap_paragraph(f"Not decided: {claim.left_open}")] if claim.left_open else []
        if result.figure:
            lines.append(f"\n![{result.figure.caption}](figures/claims_{result.figure.name}.svg)\n")
            lines.append(_wrap_paragraph(f"*{result.figure.caption}.*"))
    return "\n".join(lines) + "\n" + TAIL


def _wrap_paragraph(paragraph: str) -> str:
    return textwrap.fill(paragraph, 120, break_long_words=False, break_on_hyphens=False)


def _format_row(row: Row) -> str:
    holds = {True: "yes", False: "no", None: "–"}[row.holds] if row.need else ""
    needs = row.need.describe(row.form) if row.need else ""
    description = f"{row.name}{', ' if row.detail else ''}{row.detail}".replace("|", "\\|")
    return f"| {description} | {_format_value(row.value, row.form)} | {needs} | {holds} |"


def _format_value(value: Interval, form: str) -> str:
    mean, low, high = (format_value(number, form) for number in (value.mean, value.low, value.high))
    unit = " points" if form == "points" else ""
    return f"{mean}{unit} [{low}, {high}]" if value.drawn else f"{mean}{unit}"
