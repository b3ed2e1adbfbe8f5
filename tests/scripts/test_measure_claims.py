"""scripts/measure_claims.py writes the page in docs, and its verdicts follow from the intervals."""

import math
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from claims.claim import (
    Claim,
    Requirement,
    Result,
    Row,
    above,
    below,
    check_at_least,
    format_value,
    inside,
    outside,
    verdict_of,
)
from claims.interval import (
    Interval,
    exact_interval,
    geometric_mean_interval,
    mean_interval,
    share_difference_interval,
    share_interval,
)

from tests.support.forked_command import ROOT

VERDICTS = {"true", "false", "depends", "not settled"}


def _claims(page: str) -> list[str]:
    return re.findall(r"^## \d+\. (.+)$", page, re.MULTILINE)


@pytest.mark.drill
def test_the_script_gives_each_claim_a_verdict_and_the_page_in_docs_has_the_same_claims(tmp_path: Path):
    script = str(ROOT / "scripts" / "measure_claims.py")
    command = [sys.executable, script, "--quick", "--jobs", "1", "--docs", str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=250, check=False)
    assert result.returncode == 0, result.stderr
    page = (tmp_path / "evidence" / "claims.md").read_text()
    claims = _claims(page)
    assert len(claims) > 25
    assert re.findall(r"^\| \d+ \| \[(.+?)\]\(#", page, re.MULTILINE) == claims
    verdicts = re.findall(r"^\*\*Verdict: (.+?)\*\*", page, re.MULTILINE)
    assert len(verdicts) == len(claims)
    assert set(verdicts) <= VERDICTS
    assert re.findall(r"^\| \d+ \| .* \| (.+?) \|$", page, re.MULTILINE) == verdicts
    assert not re.search(r"[{}]|\bnan\b|\bNone\b|Interval\(", page)
    for folder in (tmp_path, ROOT / "docs"):
        written_page = (folder / "evidence" / "claims.md").read_text()
        assert _claims(written_page) == claims
        figures = {f"../figures/{file.name}" for file in (folder / "figures").glob("claims_*.svg")}
        assert figures == set(re.findall(r"\]\((\.\./figures/.+?)\)", written_page))


@pytest.mark.parametrize(
    ("need", "low", "high", "holds"),
    [
        (above(0), 0.1, 0.2, True),
        (above(0), -0.1, 0.2, None),
        (above(0), -0.2, -0.1, False),
        (above(0), 0.0, 0.0, False),
        (above(0, 0.5), 0.1, 0.4, False),  # there, and too small to matter
        (above(0, 0.5), 0.1, 0.6, True),
        (above(0, 0.5), -0.1, 0.6, None),
        (below(1, 0.1), 0.5, 0.8, True),
        (below(1, 0.1), 0.95, 1.2, False),
        (below(1, 0.1), 0.85, 1.2, None),
        (check_at_least(0), 0.0, 0.0, True),
        (inside(1, 2), 1.0, 2.0, True),
        (inside(1, 2), 2.1, 2.2, False),
        (inside(1, 2), 1.9, 2.2, None),
        (outside(1, 2), 2.1, 2.2, True),
        (outside(1, 2), 1.2, 1.3, False),
        (outside(1, 2), 1.9, 2.2, None),
    ],
)
def test_a_line_holds_where_the_whole_interval_says_so(need: Requirement, low: float, high: float, holds: bool | None):
    assert need.check(Interval((low + high) / 2, low, high)) is holds


@pytest.mark.parametrize(
    ("held", "of_all", "word"),
    [
        ([True, True], False, "true"),
        ([True, True], True, "true"),
        ([False, False], False, "false"),
        ([True, False], False, "depends"),
        ([True, False], True, "false"),
        ([True, None], False, "not settled"),
        ([False, None], False, "not settled"),
        ([False, None], True, "false"),
        ([True, False, None], False, "depends"),
    ],
)
def test_a_verdict_follows_from_the_lines(held: list[bool | None], of_all: bool, word: str):
    intervals = {True: exact_interval(1.0), False: exact_interval(-1.0), None: Interval(0.0, -1.0, 1.0)}
    rows = [Row(f"line {number}", intervals[outcome], above(0)) for number, outcome in enumerate(held)]
    claim = Claim("", "", "", "", lambda effort: Result([]), "the line", of_all)
    verdict = verdict_of(claim, [*rows, Row("to compare with", exact_interval(-1.0))])
    assert verdict.word == word
    assert "to compare with" not in verdict.sentence


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5])
def test_an_interval_of_a_share_covers_it_in_95_of_100(share: float):
    runs = torch.rand(2000, 20, generator=torch.Generator().manual_seed(0)) < share
    assert sum((interval := share_interval(run)).low <= share <= interval.high for run in runs) >= 0.94 * 2000


@pytest.mark.slow
@pytest.mark.parametrize(
    ("interval_of", "truth"), [(mean_interval, 1.0), (lambda z: geometric_mean_interval(z.exp()), math.e)]
)
def test_an_interval_of_a_mean_covers_it_in_95_of_100(interval_of: Callable[[torch.Tensor], Interval], truth: float):
    draws = 1 + torch.randn(2000, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    covered = sum((interval := interval_of(sample)).low <= truth <= interval.high for sample in draws)
    assert covered == pytest.approx(0.95 * 2000, abs=4 * math.sqrt(2000 * 0.95 * 0.05))


@pytest.mark.slow
def test_an_interval_of_a_difference_of_shares_covers_it_in_95_of_100():
    generator = torch.Generator().manual_seed(0)
    intervals = [
        share_difference_interval(*(torch.rand(50, generator=generator) < share for share in (0.4, 0.2)))
        for _ in range(2000)
    ]
    assert sum(interval.low <= 0.2 <= interval.high for interval in intervals) >= 0.935 * 2000


@pytest.mark.parametrize(
    ("value", "form", "text"),
    [(0.00018, ".1e", "1.8e-4"), (0.0, ".1e", "0"), (-0.0001, "points", "+0.0"), (0.1234, "points", "+12.3")],
)
def test_numbers_read_well(value: float, form: str, text: str):
    assert format_value(value, form) == text
