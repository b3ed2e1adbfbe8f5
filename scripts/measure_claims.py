"""Measures each claim of an article about activations, and writes the page with the verdicts.

    pip install -e ".[train,docs,mnist1d]"
    python scripts/measure_claims.py [--quick] [--jobs 2] [--seeds 10] [--docs docs]

Writes ``evidence/claims.md`` and ``figures/claims_*.svg``. Their content does not depend on the time or the load of the
machine. ``--quick`` uses two seeds and a few steps per run. It tests the script, and its numbers have no meaning. The
experiments are in ``scripts/claims/``, one kind per file.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import torch
from claims.all_claims import CLAIMS
from claims.claim import Effort, Result
from claims.claims_page import render_page
from claims.figures import draw

ROOT = Path(__file__).resolve().parents[1]


def groups() -> list[list[int]]:
    """Returns the indices of the claims, grouped by file. Claims of a file share training runs."""
    by_file: dict[str, list[int]] = {}
    for index, claim in enumerate(CLAIMS):
        function = claim.measure.func if isinstance(claim.measure, partial) else claim.measure
        by_file.setdefault(function.__module__, []).append(index)
    return [*reversed(by_file.values())]  # the longest are at the end of the article and start first


def measured(group: list[int], effort: Effort) -> list[tuple[int, Result, float]]:
    torch.set_num_threads(1)  # sums then do not depend on the number of cores
    results = []
    for index in group:
        started = time.monotonic()
        results.append((index, CLAIMS[index].measure(effort), time.monotonic() - started))
    return results


def all_measured(effort: Effort, jobs: int) -> Iterator[tuple[int, Result, float]]:
    measure = partial(measured, effort=effort)
    if jobs == 1:
        yield from itertools.chain.from_iterable(map(measure, groups()))
        return
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        yield from itertools.chain.from_iterable(pool.map(measure, groups()))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="two seeds, a few steps")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--docs", type=Path, default=ROOT / "docs")
    arguments = parser.parse_args()
    effort = Effort(2, 0.02) if arguments.quick else Effort(arguments.seeds)
    started = time.monotonic()
    results_by_group: dict[int, Result] = {}
    for index, result, seconds in all_measured(effort, arguments.jobs):
        results_by_group[index] = result
        print(f"{seconds:6.1f} s  {CLAIMS[index].title}", file=sys.stderr, flush=True)
    results = [results_by_group[index] for index in range(len(CLAIMS))]
    figures = arguments.docs / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    for result in results:
        if result.figure:
            draw(result.figure, figures)
    page = arguments.docs / "evidence" / "claims.md"
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(render_page(CLAIMS, results, effort))
    print(f"{page}: {len(CLAIMS)} claims, {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
