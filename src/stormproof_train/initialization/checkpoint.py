"""Initialization from the weights of a checkpoint."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from stormproof.checkpoint import load_checkpoint
from stormproof.errors import DamagedError
from stormproof_train.errors import UserError, first_line

NETWORK_PREFIX = "network."
"""Prefix of the names of network weights in the checkpoint of a run."""


def from_checkpoint(network: nn.Module, path: str, sha256: str | None = None) -> None:
    """Loads all network weights from a checkpoint to start a new run with them.

    Args:
        network: Network to initialize.
        path: Checkpoint of a run, which may be sharded, or a file with the ``state_dict`` of one network. Loaded with
            ``weights_only=True``.
        sha256: Expected SHA-256 of the file in hexadecimal. The identity of the run then depends on this hash and not
            on the path. Not checked if None.

    Raises:
        UserError: If the file does not exist, its content is not a checkpoint or has another hash, or the weights do
            not fit the network.

    Example:
        >>> from tempfile import mkdtemp
        >>> path = f"{mkdtemp()}/weights.ckpt"
        >>> trained, other = nn.Linear(2, 1), nn.Linear(2, 1)
        >>> torch.save(trained.state_dict(), path)
        >>> from_checkpoint(other, path)
        >>> bool((other.weight == trained.weight).all())
        True

    References:
        https://docs.pytorch.org/docs/stable/generated/torch.nn.Module.html#torch.nn.Module.load_state_dict
    """
    weights = extract_network_weights(read_checkpoint(Path(path), sha256))
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        mismatch_lines = str(error).strip().splitlines()[1:2] or [first_line(error)]
        raise UserError(
            f"the weights in {path} do not fit this {type(network).__name__}: {mismatch_lines[0].strip()}"
        ) from error


def compute_digest(path: Path) -> str:
    """Returns the SHA-256 of the content of a file in hexadecimal. Of a folder, of its file names and their SHA-256."""
    if path.is_dir():
        lines = [f"{compute_digest(file)} {file.name}\n" for file in sorted(path.iterdir())]
        return hashlib.sha256("".join(lines).encode()).hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_checkpoint(path: Path, sha256: str | None = None) -> dict[str, Any]:
    """Returns the content of a checkpoint without executing code from it.

    Args:
        path: File, or folder of a sharded checkpoint.
        sha256: Expected result of :func:`compute_digest`. Not checked if None.

    Raises:
        UserError: If it does not exist, cannot be loaded with ``weights_only=True``, or has another hash.
    """
    if not path.exists():
        raise UserError(f"checkpoint {path} does not exist")
    if sha256 is not None and compute_digest(path) != sha256:
        raise UserError(f"{path} was replaced or changed: its content does not have the SHA-256 {sha256}")
    try:
        content: Any = load_checkpoint(path)
    except DamagedError as error:
        raise UserError(str(error)) from error
    if not isinstance(content, Mapping):
        raise UserError(f"{path} contains {type(content).__name__}, expected weights by name")
    return dict(content)


def extract_network_weights(content: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Returns the weights of the network by their names in the network.

    Args:
        content: Content of a checkpoint of a run, or the ``state_dict`` of a network.
    """
    state: Mapping[str, Any] = content.get("state_dict", content)
    task_weights = {
        name.removeprefix(NETWORK_PREFIX): value for name, value in state.items() if name.startswith(NETWORK_PREFIX)
    }
    return task_weights or dict(state)
