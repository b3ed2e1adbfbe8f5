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


def _make_corruptions(corruptions: ModuleType, count: int, tmp_path: Path, **restrictions: tuple[str, ...]) -> list:
    good = corruptions.make_folder(tmp_path / "good").folder
    generator = random.Random(1)
    return [corruptions.corrupt(good, tmp_path / "copy", generator, **restrictions) for _ in range(count)]


@pytest.mark.slow
def test_every_corruption_is_found_before_any_state_is_loaded(corruptions: ModuleType, tmp_path: Path):
    injected = _make_corruptions(corruptions, 120, tmp_path)
    assert [corruption for corruption in injected if not corruption.is_found] == []
    assert {corruption.kind for corruption in injected} == set(corruptions.KINDS)
    assert {corruption.file for corruption in injected} == set(corruptions.FILES)
    assert {path.name for path in tmp_path.iterdir()} == {"good"}


@pytest.mark.slow
def test_a_store_that_does_not_look_misses_flipped_bits(
    corruptions: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(verification, "find_content_problem", lambda storage, files: None)
    injected = _make_corruptions(corruptions, 30, tmp_path, kinds=("flipped bit",), files=("checkpoint",))
    assert [corruption for corruption in injected if not corruption.is_found] != []
    monkeypatch.undo()
    found = _make_corruptions(corruptions, 30, tmp_path / "again", kinds=("flipped bit",), files=("checkpoint",))
    assert [corruption for corruption in found if not corruption.is_found] == []
