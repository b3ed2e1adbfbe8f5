"""The norms are those of the whole job's gradient: as one process has them that sees all samples."""

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from tests.stormproof.gradients.norm_fits import FitCase, measure_norms, reference_norms
from tests.support.ranks import run_on_two_ranks
from tests.support.small_fits import LIGHTNING_WARNING_FILTERS

pytestmark = [pytest.mark.slow, *LIGHTNING_WARNING_FILTERS, pytest.mark.filterwarnings("ignore:.*fused.*")]

ONE_RANK = {
    "plain": FitCase(),
    "accumulated": FitCase(accumulate=3),
    "clipped by norm": FitCase(clip=0.5),
    "clipped by value": FitCase(clip=0.05, algorithm="value"),
    "accumulated and clipped": FitCase(accumulate=3, clip=0.5),
    "fused": FitCase(fused=True),
    "16-bit": FitCase(half_precision=True),
    "16-bit, accumulated and clipped": FitCase(half_precision=True, accumulate=2, clip=0.5),
    "16-bit, fused": FitCase(half_precision=True, fused=True),
    "16-bit, fused, accumulated": FitCase(half_precision=True, fused=True, accumulate=2),
    "manual": FitCase(manual=True),
    "manual, accumulated and clipped": FitCase(manual=True, accumulate=2, clip=0.5),
    "manual, clipped by value": FitCase(manual=True, clip=0.05, algorithm="value"),
    "manual, 16-bit": FitCase(manual=True, half_precision=True),
    "manual, 16-bit, fused": FitCase(manual=True, half_precision=True, fused=True),
}
TWO_RANKS = {
    "plain": FitCase(),
    "accumulated and clipped": FitCase(accumulate=3, clip=0.5),
    "16-bit, accumulated": FitCase(half_precision=True, accumulate=2),
    "16-bit, fused": FitCase(half_precision=True, fused=True),
    "manual, accumulated and clipped": FitCase(manual=True, accumulate=2, clip=0.5),
    "sharded": FitCase(sharded=True),
    "sharded, accumulated and clipped": FitCase(sharded=True, accumulate=2, clip=0.5),
    "sharded, clipped by value": FitCase(sharded=True, clip=0.05, algorithm="value"),
}


def assert_equal(actual: list[dict[str, float]], reference: list[dict[str, float]]) -> None:
    assert len(actual) == len(reference)
    for step, (actual_norms, expected_norms) in enumerate(zip(actual, reference, strict=True)):
        assert actual_norms.keys() == expected_norms.keys()
        assert actual_norms == pytest.approx(expected_norms, rel=1e-5), f"step {step + 1}"


@pytest.mark.parametrize("name", ONE_RANK)
def test_on_one_rank(name: str):
    assert_equal(measure_norms(ONE_RANK[name]), reference_norms(ONE_RANK[name]))


@pytest.fixture(scope="module")
def both_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, list[dict[str, float]]]]:
    """What each of two ranks measured in each case."""
    folder = tmp_path_factory.mktemp("ranks")
    run_on_two_ranks(__file__, str(folder), cwd=folder)
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.parametrize("name", TWO_RANKS)
def test_on_two_ranks(name: str, both_ranks: list[dict[str, list[dict[str, float]]]]):
    assert both_ranks[0][name] == both_ranks[1][name]
    case = FitCase(**{**asdict(TWO_RANKS[name]), "sharded": False})
    assert_equal(both_ranks[0][name], reference_norms(case, ranks=2))


if __name__ == "__main__":
    results = {name: measure_norms(case, ranks=2) for name, case in TWO_RANKS.items()}
    Path(sys.argv[1], f"rank{os.environ['RANK']}.json").write_text(json.dumps(results))
