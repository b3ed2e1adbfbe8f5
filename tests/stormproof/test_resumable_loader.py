"""Wherever a pass is left, a new loader of the same kind goes on there, and nobody else's random numbers change."""

import io
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
import torch

from stormproof import resumable
from stormproof.data import rng
from stormproof.resumable_loader import ResumableLoader
from tests.stormproof.data.loader_kinds import BATCH_SIZE, MAP_STYLE_LOADERS, OTHER_LOADERS, SAMPLES, LoaderFactory
from tests.support.cases import mark_cases, slow_except

KINDS = {**MAP_STYLE_LOADERS, **OTHER_LOADERS}
EPOCHS = 3
DEFAULT = {
    "shuffle", "weighted, global", "Python's generator", "a sampler with state_dict", "distributed", "batch sampler",
    "no batches", "a stream", "a stream with state_dict, goes on", "a loader with an iterator of its own",
    "a stateful loader",
}  # fmt: skip


def _cases_of(kinds: dict[str, LoaderFactory], default: Iterable[str] = DEFAULT) -> Any:
    marks = {name: [] if name in default else [pytest.mark.slow] for name in kinds}
    return pytest.mark.parametrize(
        "make", [pytest.param(make, id=name, marks=marks[name]) for name, make in kinds.items()]
    )


every_kind = _cases_of(KINDS)
few_map_styles = _cases_of(MAP_STYLE_LOADERS, {"shuffle", "batch sampler", "Python's generator"})
WORKERS: dict[str, dict[str, Any]] = {
    "none": {},
    "2": {"num_workers": 2},
    "2, which persist": {"num_workers": 2, "persistent_workers": True},
}


@pytest.fixture(autouse=True)
def _generators_as_they_were() -> Iterator[None]:
    state = rng.capture()
    yield
    rng.restore(state)


def through_a_file(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def untouched(batches: Iterator[Any]) -> Iterator[Any]:
    """``batches``, of which none may move a generator of the process; whoever takes them draws in between."""
    while True:
        before = repr(rng.capture())
        batch = next(batches, None)
        assert repr(rng.capture()) == before
        if batch is None:
            return
        rng.seed_process(len(before), 7)
        yield repr(batch)


def run_epochs(loader: Any, limits: tuple[int | None, ...]) -> list[list[str]]:
    """The batches of a pass for each of ``limits``; after so many, the pass is broken off."""
    played = []
    for limit in limits:
        played.append([])
        for batch in untouched(iter(loader)):
            played[-1].append(batch)
            if len(played[-1]) == limit:
                break
    return played


def resume_loader(make: LoaderFactory, state: Any, **options: Any) -> ResumableLoader:
    """A loader as a new process makes it, where the random numbers are others."""
    rng.seed_process(99)
    fresh = resumable(make(**options))
    fresh.load_state_dict(through_a_file(state))
    return fresh


@every_kind
@pytest.mark.parametrize("ahead", mark_cases([0, 1, 2], [0, 2], [2]))
def test_from_every_batch_on_the_rest_is_the_same(make: LoaderFactory, ahead: int):
    loader = resumable(make(), seed=3)
    played: list[list[str]] = []
    states = []
    for epoch in range(EPOCHS):
        played.append([])
        for batch in untouched(iter(loader)):
            played[-1].append(batch)
            if len(played[-1]) >= ahead:
                states.append((epoch, len(played[-1]) - ahead, loader.state_dict(ahead)))
    assert len({epoch for epoch, _, _ in states}) == EPOCHS
    for epoch, taken, state in states:
        fresh = resume_loader(make, state)
        whole = taken == len(played[epoch]) and taken == _length(fresh)
        expected = [*([] if whole else [played[epoch][taken:]]), *played[epoch + 1 :]]
        assert run_epochs(fresh, (None,) * len(expected)) == expected, (epoch, taken)


def _length(loader: ResumableLoader) -> int | None:
    try:
        return len(loader)
    except TypeError:
        return None


@every_kind
@pytest.mark.parametrize("limit", slow_except([1, 2, None], [2]))
def test_where_a_new_pass_was_asked_for_it_begins_whatever_the_one_before(make: LoaderFactory, limit: int | None):
    loader = resumable(make(), seed=3)
    for _ in range(EPOCHS):
        run_epochs(loader, (limit,))
        batches = iter(loader)
        saved_state = loader.state_dict()
        fresh = resume_loader(make, saved_state)
        expected = [[*untouched(batches)], *run_epochs(loader, (2, None))]
        assert run_epochs(fresh, (None, 2, None)) == expected
        loader = fresh  # which has gone the same way, and was resumed


@every_kind
def test_an_end_that_is_met_right_after_a_resume_is_an_end(make: LoaderFactory):
    loader = resumable(make(), seed=3)
    batches = iter(loader)
    states = [loader.state_dict() for _ in batches]
    fresh = resume_loader(make, states[-1])
    if _length(fresh) is None:
        assert run_epochs(fresh, (None,)) == [[]]
    batches = iter(fresh)
    assert run_epochs(resume_loader(make, fresh.state_dict()), (None, 2, None)) == run_epochs(loader, (None, 2, None))


@every_kind
def test_the_next_pass_can_be_saved_from_within_one(make: LoaderFactory):
    loader = resumable(make(), seed=3)
    run_epochs(loader, (2,))
    state = loader.next_epoch_state()
    assert run_epochs(resume_loader(make, state), (None, 1, None)) == run_epochs(loader, (None, 1, None))


@every_kind
def test_a_resumed_loader_can_be_resumed_before_its_first_batch_and_right_after(make: LoaderFactory):
    loader = resumable(make(), seed=3)
    run_epochs(loader, (None, 1))
    once = resume_loader(make, loader.state_dict())
    twice = resume_loader(make, once.state_dict())
    rest = [batch for played in run_epochs(twice, (None, None)) for batch in played]
    assert run_epochs(once, (1,)) == [rest[:1]]
    after = [batch for played in run_epochs(resume_loader(make, once.state_dict()), (None, None)) for batch in played]
    assert after[: len(rest) - 1] == rest[1:]


@few_map_styles
@pytest.mark.parametrize("workers", mark_cases(list(WORKERS)[1:], ["2, which persist"]))
def test_workers_change_no_batch_and_resume_anywhere(make: LoaderFactory, workers: str):
    limits = (None, 2, None)
    expected = run_epochs(resumable(make(), seed=3), limits)
    loader = resumable(make(**WORKERS[workers]), seed=3)
    assert run_epochs(loader, limits[:2]) == expected[:2]
    batches = iter(loader)
    last: list[str] = []
    for batch in untouched(batches):
        last.append(batch)
        if len(last) < len(expected[2]):
            fresh = resume_loader(make, loader.state_dict(), **WORKERS["none" if len(last) % 2 else workers])
            assert run_epochs(fresh, (None,)) == [expected[2][len(last) :]]
    assert last == expected[2]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a stream", "a stream with state_dict, goes on"])
@pytest.mark.parametrize("workers", list(WORKERS)[1:])
def test_a_stream_in_workers_resumes_by_going_its_way_again(name: str, workers: str):
    make, options = KINDS[name], WORKERS[workers]
    loader = resumable(make(**options), seed=3)
    first, states = [], []
    for batch in untouched(iter(loader)):
        first.append(batch)
        states.append(loader.state_dict())
    rest = run_epochs(loader, (None,))
    for taken, state in enumerate(states[::3]):
        fresh = resume_loader(make, state, **options)
        assert run_epochs(fresh, (None, None)) == [first[3 * taken + 1 :], *rest]


@every_kind
def test_another_seed_gives_other_batches_and_the_same_the_same(make: LoaderFactory):
    first, repeated, other_seed = (run_epochs(resumable(make(), seed=seed), (None,)) for seed in (3, 3, 4))
    assert first == repeated
    assert first != other_seed


def test_passes_differ_from_one_another():
    first, second = run_epochs(resumable(MAP_STYLE_LOADERS["sequential"](), seed=3), (None, None))
    assert first != second


def test_the_seed_is_that_of_seed_everything(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "12")
    make = MAP_STYLE_LOADERS["shuffle"]
    assert run_epochs(resumable(make()), (None,)) == run_epochs(resumable(make(), seed=12), (None,))


def test_the_seed_is_else_torchs_initial_one(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    torch.manual_seed(2**63 + 5)
    loader = resumable(MAP_STYLE_LOADERS["shuffle"]())
    batch = next(iter(loader))
    assert through_a_file(loader.state_dict())["seed"] == 2**63 + 5
    assert torch.equal(batch, next(iter(resumable(MAP_STYLE_LOADERS["shuffle"](), seed=2**63 + 5))))


def test_one_rank_resumes_after_the_samples_that_two_ranks_took():
    two_ranks, one_rank = (resumable(MAP_STYLE_LOADERS["sequential"](), seed=1) for _ in range(2))
    next(iter(two_ranks))
    one_rank.load_state_dict({**two_ranks.state_dict(), "world_size": 2})
    assert next(iter(one_rank))[:, 0].tolist() == list(range(2 * BATCH_SIZE, SAMPLES))
