import random
from pathlib import Path
from types import ModuleType

import pytest

from stormproof.checkpoint import verification
from tests.support.forked_command import ROOT


@pytest.fixture
def corruptions(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "scripts" / "benchmarks")
    import corruptions

    return corruptions


def _make(corruptions: ModuleType, count: int, tmp_path: Path) -> list:
    good = corruptions.make_folder(tmp_path / "good").folder
    dice = random.Random(1)
    return [corruptions.corrupt(good, tmp_path / "copy", dice) for _ in range(count)]


@pytest.mark.slow
def test_every_corruption_is_found_before_any_state_is_loaded(corruptions: ModuleType, tmp_path: Path):
    made = _make(corruptions, 120, tmp_path)
    assert [each for each in made if not each.found] == []
    assert {each.kind for each in made} == set(corruptions.KINDS)
    assert {each.file for each in made} == set(corruptions.FILES)
    assert {path.name for path in tmp_path.iterdir()} == {"good"}


@pytest.mark.slow
def test_a_store_that_does_not_look_misses_some(
    corruptions: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(verification, "_differs", lambda checkpoint: None)
    missed = {(each.file, each.kind) for each in _make(corruptions, 60, tmp_path) if not each.found}
    assert ("checkpoint", "flipped bit") in missed
    assert {file for file, _ in missed} == {"checkpoint"}
