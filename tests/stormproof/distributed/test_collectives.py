from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from stormproof.distributed.collectives import agree, everyone, gather, largest, on_rank_zero, share, world_size
from stormproof.errors import FolderTakenError, RanksDisagreeError, StormproofError
from tests.support.ranks import call_on_two_ranks


def _told(function: Callable[[], Any]) -> Any:
    """What ``function`` gives, or the error as plain values."""
    try:
        return function()
    except (StormproofError, ZeroDivisionError) as error:
        return type(error).__name__, str(error), getattr(error, "exit_code", None)


def _fail_on(rank: int, failing: int, error: Exception) -> Any:
    if rank == failing:
        raise error
    return "fine"


UNUSUAL = (torch.uint16, torch.uint32, torch.float8_e4m3fn, torch.bfloat16)


def _as_lists(ranks: list[Any] | None) -> Any:
    return ranks and [[tensor.float().tolist() for tensor in tensors] for tensors in ranks]


def _rank(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    said = f"of rank {rank}"
    called: list[int] = []
    result = {
        "world_size": world_size(),
        "share": share(said),
        "share of None": share(None if rank == 0 else said),
        "gather": gather(said),
        "gather of unusual dtypes": _as_lists(gather([torch.ones(2).to(kind) for kind in UNUSUAL])),
        "everyone": everyone(said),
        "on_rank_zero": on_rank_zero(lambda: called.append(rank) or said),
        "largest": largest([float(rank), -float(rank)], torch.device("cpu")),
        "called": called,
        "our error": _told(lambda: on_rank_zero(lambda: _fail_on(rank, 0, FolderTakenError("somebody is there")))),
        "any error": _told(lambda: on_rank_zero(lambda: _fail_on(rank, 0, ZeroDivisionError("by nought")))),
        "an error elsewhere": _told(lambda: on_rank_zero(lambda: _fail_on(rank, 1, ZeroDivisionError("never run")))),
        "agreed": _told(lambda: agree("the step", "600")),
        "agreed on none": _told(lambda: agree("the step", None)),
        "disagreed": _told(lambda: agree("the step", "600" if rank == 0 else None)),
        "afterwards": share(said),
    }
    torch.save(result, f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two real ranks was told."""
    folder: Path = tmp_path_factory.mktemp("ranks")
    call_on_two_ranks(_rank, str(folder))
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]


BOTH = ["of rank 0", "of rank 1"]
DISAGREED = "the ranks do not agree on the step (rank 0: 600; rank 1: none): start all of them again"
TOLD = {
    "world_size": (2, 2),
    "share": ("of rank 0", "of rank 0"),
    "share of None": (None, None),
    "gather": (BOTH, None),
    "gather of unusual dtypes": ([[[1.0, 1.0]] * 4] * 2, None),
    "everyone": (BOTH, BOTH),
    "on_rank_zero": ("of rank 0", "of rank 0"),
    "largest": ([1.0, 0.0], [1.0, 0.0]),
    "called": ([0], []),
    "our error": (
        ("FolderTakenError", "somebody is there", 2),
        ("StormproofError", "rank 0: somebody is there", 2),
    ),
    "any error": (("ZeroDivisionError", "by nought", None), ("StormproofError", "rank 0: by nought", 1)),
    "an error elsewhere": ("fine", "fine"),
    "agreed": (None, None),
    "agreed on none": (None, None),
    "disagreed": (("RanksDisagreeError", DISAGREED, 75),) * 2,
    "afterwards": ("of rank 0", "of rank 0"),
}


@pytest.mark.slow
@pytest.mark.parametrize(("what", "told"), TOLD.items(), ids=TOLD.keys())
def test_two_ranks_are_told_the_same(what: str, told: tuple[Any, Any], ranks: list[dict[str, Any]]):
    assert (ranks[0][what], ranks[1][what]) == told


def test_without_a_group_a_process_speaks_for_itself():
    assert world_size() == 1
    assert share("mine") == "mine"
    assert gather("mine") == everyone("mine") == ["mine"]
    assert on_rank_zero(lambda: "mine") == "mine"
    agree("the step", "600")


def test_without_a_group_an_error_stays_what_it_is():
    with pytest.raises(ZeroDivisionError):
        on_rank_zero(lambda: 1 // 0)


def test_ranks_that_disagree_may_be_started_again():
    assert issubclass(RanksDisagreeError, StormproofError)
    assert RanksDisagreeError("").exit_code == 75
