"""Loads checkpoints, in one file or sharded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stormproof.checkpoint.file_names import parse_file_name
from stormproof.checkpoint.load_check import summarize_refusal
from stormproof.checkpoint.verification import find_committed_problem, find_path_problem
from stormproof.errors import DamagedError


def load_checkpoint(path: Path | str) -> dict[str, Any]:
    """Loads a full or sharded checkpoint into host memory. Executes no code from it.

    First verifies the hashes if the manifest is next to the checkpoint.

    Args:
        path: File, or folder of a sharded checkpoint.

    Returns:
        Lightning checkpoint with the full parameters and optimizer states. Optimizer states are keyed by parameter ID,
        as in ``Optimizer.state_dict``.

    Raises:
        DamagedError: If the content has changed since it was committed, or cannot be loaded.
        OSError: If a file cannot be read.

    Example:
        >>> checkpoint = load_checkpoint("runs/large/000012-step-600.ckpt")  # doctest: +SKIP
        >>> module.load_state_dict(checkpoint["state_dict"])  # doctest: +SKIP
    """
    import torch  # noqa: PLC0415 (takes a second; not needed to list a folder or write to it)

    path = Path(path)
    has_manifest = parse_file_name(path.name) is not None and path.with_suffix(".json").exists()
    problem = find_committed_problem(path) if has_manifest else find_path_problem(path)
    if problem is not None:
        raise DamagedError(f"{path} is damaged or not a checkpoint: {problem}. Choose another checkpoint.")
    try:
        if not path.is_dir():
            return torch.load(path, map_location="cpu", weights_only=True)
        from stormproof.checkpoint.sharding.shard_reader import load_full  # noqa: PLC0415 (0.3 s)

        return load_full(path)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # torch raises any exception if a tensor is damaged
        reason = summarize_refusal(error)
        raise DamagedError(f"{path} is damaged or not a checkpoint: {reason}. Choose another checkpoint.") from error
