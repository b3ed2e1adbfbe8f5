from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from stormproof.distributed.collectives import (
    all_gather,
    all_reduce_max,
    assert_equal,
    broadcast,
    gather,
    run_on_rank_zero,
    world_size,
)
from stormproof.errors import FolderTakenError, RanksDisagreeError, StormproofError
from tests.support.ranks import call_on_two_ranks


def _raised_message(function: Callable[[], Any]) -> Any:
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
    message = f"of rank {rank}"
    called: list[int] = []
    result = {
        "world_size": world_size(),
        "share": broadcast(message),
        "share of None": broadcast(None if rank == 0 else message),
        "gather": gather(message),
        "gather of unusual dtypes": _as_lists(gather([torch.ones(2).to(kind) for kind in UNUSUAL])),
        "everyone": all_gather(message),
        "run_on_rank_zero": run_on_rank_zero(lambda: called.append(rank) or message),
        "largest": all_reduce_max([float(rank), -float(rank)], torch.device("cpu")),
        "called": called,
        "our error": _raised_message(
            lambda: run_on_rank_zero(lambda: _fail_on(rank, 0, FolderTakenError("somebody is there")))
        ),
        "any error": _raised_message(
            lambda: run_on_rank_zero(lambda: _fail_on(rank, 0, ZeroDivisionError("by nought")))
        ),
        "an error elsewhere": _raised_message(
            lambda: run_on_rank_zero(lambda: _fail_on(rank, 1, ZeroDivisionError("never run")))
        ),
        "agreed": _raised_message(lambda: assert_equal("the step", "600")),
        "agreed on none": _raised_message(lambda: assert_equal("the step", None)),
        "disagreed": _raised_message(lambda: assert_equal("the step", "600" if rank == 0 else None)),
        "afterwards": broadcast(message),
    }
    torch.save(result, f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two real ranks was told."""
    folder: Path = tmp_path_factory.mktemp("ranks")
    call_on_two_ranks(_rank, str(folder))
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]


BOTH_RANKS = ["of rank 0", "of rank 1"]
DISAGREED = "The ranks do not agree on the step (rank 0: 600; rank 1: none). Restart all ranks."
MESSAGES = {
    "world_size": (2, 2),
    "share": ("of rank 0", "of rank 0"),
    "share of None": (None, None),
    "gather": (BOTH_RANKS, None),
    "gather of unusual dtypes": ([[[1.0, 1.0]] * 4] * 2, None),
    "everyone": (BOTH_RANKS, BOTH_RANKS),
    "run_on_rank_zero": ("of rank 0", "of rank 0"),
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
@pytest.mark.parametrize(("what", "told"), MESSAGES.items(), ids=MESSAGES.keys())
def test_two_ranks_are_told_the_same(what: str, told: tuple[Any, Any], ranks: list[dict[str, Any]]):
    assert (ranks[0][what], ranks[1][what]) == told


def test_without_a_group_a_process_speaks_for_itself():
    assert world_size() == 1
    assert broadcast("mine") == "mine"
    assert gather("mine") == all_gather("mine") == ["mine"]
    assert run_on_rank_zero(lambda: "mine") == "mine"
    assert_equal("the step", "600")


def test_without_a_group_an_error_stays_what_it_is():
    with pytest.raises(ZeroDivisionError):
        run_on_rank_zero(lambda: 1 // 0)


def test_ranks_that_disagree_may_be_started_again():
    assert issubclass(RanksDisagreeError, StormproofError)
    assert RanksDisagreeError("").exit_code == 75
