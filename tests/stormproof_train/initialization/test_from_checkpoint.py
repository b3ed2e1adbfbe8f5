"""Weights that are there already."""

from pathlib import Path

import pytest
import torch
from torch import nn

from stormproof_train.errors import UserError
from stormproof_train.initialization import from_checkpoint
from stormproof_train.initialization.checkpoint import compute_digest


def test_the_weights_of_a_run_are_taken_bit_for_bit(tmp_path: Path):
    trained, restored = nn.Linear(3, 2), nn.Linear(3, 2)
    state = {f"network.{name}": value for name, value in trained.state_dict().items()}
    torch.save({"state_dict": state | {"metrics.total": torch.tensor(1.0)}}, tmp_path / "a.ckpt")
    from_checkpoint(restored, str(tmp_path / "a.ckpt"))
    assert torch.equal(restored.weight, trained.weight)
    assert torch.equal(restored.bias, trained.bias)


def test_buffers_are_taken_too(tmp_path: Path):
    trained, restored = nn.BatchNorm1d(2), nn.BatchNorm1d(2)
    trained(torch.randn(8, 2))
    torch.save(trained.state_dict(), tmp_path / "a.ckpt")
    from_checkpoint(restored, str(tmp_path / "a.ckpt"))
    assert torch.equal(restored.running_mean, trained.running_mean)


MISTAKES = {
    "nothing there": (None, "does not exist"),
    "no archive": (b"weights", "is damaged or not a checkpoint: it is not a complete zip archive"),
    "a number": (1, "contains int, expected weights by name"),
    "another shape": (nn.Linear(4, 2), "do not fit this Linear: size mismatch"),
    "other names": (nn.Sequential(nn.Linear(3, 2)), r"do not fit this Linear: Missing key\(s\)"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_what_does_not_fit_is_a_sentence(name: str, tmp_path: Path):
    content, sentence = MISTAKES[name]
    path = tmp_path / "a.ckpt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content.state_dict() if isinstance(content, nn.Module) else content, path)
    with pytest.raises(UserError, match=sentence):
        from_checkpoint(nn.Linear(3, 2), str(path))


def test_a_file_that_was_replaced_is_refused(tmp_path: Path):
    path = tmp_path / "a.ckpt"
    torch.save(nn.Linear(3, 2).state_dict(), path)
    sha256 = compute_digest(path)
    from_checkpoint(nn.Linear(3, 2), str(path), sha256)
    torch.save(nn.Linear(3, 2).state_dict(), path)
    with pytest.raises(UserError, match="was replaced or changed"):
        from_checkpoint(nn.Linear(3, 2), str(path), sha256)
