"""Weights that are there already."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from stormproof.checkpoint.verification import find_load_problem
from stormproof_train.errors import UserError, first_line

NETWORK_PREFIX = "network."
"""Before the names of a network's own weights in a checkpoint of a run."""


def from_checkpoint(network: nn.Module, path: str, sha256: str | None = None) -> None:
    """Takes the weights of a checkpoint, all of them: training goes on from there as a new run.

    Args:
        network: takes them.
        path: a checkpoint of a run, or a file of one network's ``state_dict``; loaded with ``weights_only=True``.
        sha256: of what the file holds, in hexadecimal; then it counts, and not where the file lies. None: whatever.

    Raises:
        UserError: if there is no such file, or it holds something else, or its weights are not those of this network.

    Example:
        >>> from tempfile import mkdtemp
        >>> path = f"{mkdtemp()}/weights.ckpt"
        >>> trained, other = nn.Linear(2, 1), nn.Linear(2, 1)
        >>> torch.save(trained.state_dict(), path)
        >>> from_checkpoint(other, path)
        >>> bool((other.weight == trained.weight).all())
        True
    """
    weights = extract_network_weights(read_checkpoint(Path(path), sha256))
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        mismatch_lines = str(error).strip().splitlines()[1:2] or [first_line(error)]
        raise UserError(
            f"{path} holds the weights of another network than {type(network).__name__} as it is here: "
            f"{mismatch_lines[0].strip()}"
        ) from error


def compute_digest(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_checkpoint(path: Path, sha256: str | None = None) -> dict[str, Any]:
    """What a file holds; nothing in it is executed.

    Args:
        path: of the file.
        sha256: of its content; None: whatever it is.

    Raises:
        UserError: if there is none, or torch does not load it so, or its content is another.
    """
    if not path.is_file():
        raise UserError(f"there is no checkpoint {path}")
    problem = find_load_problem(path)
    if problem is not None:
        raise UserError(f"{path} is damaged, or no checkpoint: {problem}")
    if sha256 is not None and compute_digest(path) != sha256:
        raise UserError(f"{path} is another file than it was: its content does not have the SHA-256 {sha256}")
    content: Any = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(content, Mapping):
        raise UserError(f"{path} holds {type(content).__name__}, and no weights by name")
    return dict(content)


def extract_network_weights(content: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The network's weights, by their names in it.

    Args:
        content: of a checkpoint of a run, or a network's ``state_dict`` itself.
    """
    state: Mapping[str, Any] = content.get("state_dict", content)
    task_weights = {
        name.removeprefix(NETWORK_PREFIX): value for name, value in state.items() if name.startswith(NETWORK_PREFIX)
    }
    return task_weights or dict(state)
