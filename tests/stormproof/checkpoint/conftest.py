"""Fixtures of the tests of checkpoints."""

import tempfile
from pathlib import Path

import pytest
import pytorch_lightning  # noqa: F401 (sets the rank, without which rank_zero_warn fails)


@pytest.fixture(autouse=True)
def _short_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shortens the delays before a read of a missing file or object is repeated."""
    monkeypatch.setattr("stormproof.checkpoint.read_retry.MISSING_DELAY_SECONDS", 0.01)
    monkeypatch.setattr("stormproof.checkpoint.storage.object_store._FIRST_DELAY_SECONDS", 0.01)


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty temporary folder, as on a new node."""
    folder = tmp_path / "node"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder
