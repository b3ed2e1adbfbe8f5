"""Fixtures of the tests of checkpoints."""

import tempfile
from pathlib import Path

import pytest
import pytorch_lightning  # noqa: F401 (sets the rank, without which rank_zero_warn fails)


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty temporary folder, as on a new node."""
    folder = tmp_path / "node"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder
