"""Fixtures of the tests of copies in memory."""

from pathlib import Path

import pytest

from stormproof.checkpoint.tiers import memory_copier, memory_folder


@pytest.fixture
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Replaces ``/dev/shm`` by an empty folder."""
    folder = tmp_path / "memory"
    folder.mkdir()
    monkeypatch.setattr(memory_folder, "SHARED_MEMORY", folder)
    return folder


@pytest.fixture
def copies_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes a copy due whenever the previous one is written."""
    monkeypatch.setattr(memory_copier, "MIN_INTERVAL_SECONDS", 0.0)
    monkeypatch.setattr(memory_copier, "MAX_PAUSE_SHARE", 1e9)
    monkeypatch.setattr(memory_copier, "MAX_WRITE_SHARE", 1e9)
