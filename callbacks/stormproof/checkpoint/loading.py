"""Loads complete checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def load_checkpoint(path: Path | str) -> dict[str, Any]:
    """Loads a checkpoint into host memory, also a sharded one. Executes no code from it.

    Does not verify the content. :meth:`Store.verify` does.

    Args:
        path: File, or folder of a sharded checkpoint.

    Returns:
        Lightning checkpoint. Parameters and optimizer states are complete. The states of an optimizer are numbered in
        the order of its parameter groups.

    Raises:
        OSError: If a file cannot be read.
        ValueError: If the index of a sharded checkpoint is damaged.
        pickle.UnpicklingError: If ``torch.load(weights_only=True)`` refuses the content.

    Example:
        >>> checkpoint = load_checkpoint("runs/large/000012-step-600.ckpt")  # doctest: +SKIP
        >>> module.load_state_dict(checkpoint["state_dict"])  # doctest: +SKIP
    """
    import torch  # noqa: PLC0415 (takes a second; not needed to list a folder or write to it)

    path = Path(path)
    if not path.is_dir():
        return torch.load(path, map_location="cpu", weights_only=True)
    from stormproof.checkpoint.sharding.shard_reader import load_full  # noqa: PLC0415 (as above)

    return load_full(path)
