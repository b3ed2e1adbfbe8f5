"""The norms are those of the whole job's gradient: as one process has them that sees all samples."""

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from tests.stormproof.gradients.norm_fits import Case, expected, measured
from tests.support.ranks import run_on_two_ranks
from tests.support.small_fits import LIGHTNINGS_OWN

pytestmark = [pytest.mark.slow, *LIGHTNINGS_OWN, pytest.mark.filterwarnings("ignore:.*fused.*")]

ONE_RANK = {
    "plain": Case(),
    "accumulated": Case(accumulate=3),
    "clipped by norm": Case(clip=0.5),
    "clipped by value": Case(clip=0.05, algorithm="value"),
    "accumulated and clipped": Case(accumulate=3, clip=0.5),
    "fused": Case(fused=True),
    "16-bit": Case(half=True),
    "16-bit, accumulated and clipped": Case(half=True, accumulate=2, clip=0.5),
    "16-bit, fused": Case(half=True, fused=True),
    "16-bit, fused, accumulated": Case(half=True, fused=True, accumulate=2),
    "manual": Case(manual=True),
    "manual, accumulated and clipped": Case(manual=True, accumulate=2, clip=0.5),
    "manual, clipped by value": Case(manual=True, clip=0.05, algorithm="value"),
    "manual, 16-bit": Case(manual=True, half=True),
    "manual, 16-bit, fused": Case(manual=True, half=True, fused=True),
}
TWO_RANKS = {
    "plain": Case(),
    "accumulated and clipped": Case(accumulate=3, clip=0.5),
    "16-bit, accumulated": Case(half=True, accumulate=2),
    "16-bit, fused": Case(half=True, fused=True),
    "manual, accumulated and clipped": Case(manual=True, accumulate=2, clip=0.5),
    "sharded": Case(sharded=True),
    "sharded, accumulated and clipped": Case(sharded=True, accumulate=2, clip=0.5),
    "sharded, clipped by value": Case(sharded=True, clip=0.05, algorithm="value"),
}


def assert_equal(found: list[dict[str, float]], true: list[dict[str, float]]) -> None:
    assert len(found) == len(true)
    for step, (one, other) in enumerate(zip(found, true, strict=True)):
        assert one.keys() == other.keys()
        assert one == pytest.approx(other, rel=1e-5), f"step {step + 1}"


@pytest.mark.parametrize("name", ONE_RANK)
def test_on_one_rank(name: str):
    assert_equal(measured(ONE_RANK[name]), expected(ONE_RANK[name]))


@pytest.fixture(scope="module")
def both_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, list[dict[str, float]]]]:
    """What each of two ranks measured in each case."""
    folder = tmp_path_factory.mktemp("ranks")
    run_on_two_ranks(__file__, str(folder), cwd=folder)
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.parametrize("name", TWO_RANKS)
def test_on_two_ranks(name: str, both_ranks: list[dict[str, list[dict[str, float]]]]):
    assert both_ranks[0][name] == both_ranks[1][name]
    case = Case(**{**asdict(TWO_RANKS[name]), "sharded": False})
    assert_equal(both_ranks[0][name], expected(case, ranks=2))


if __name__ == "__main__":
    results = {name: measured(case, ranks=2) for name, case in TWO_RANKS.items()}
    Path(sys.argv[1], f"rank{os.environ['RANK']}.json").write_text(json.dumps(results))
