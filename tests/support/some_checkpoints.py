"""Folders of small, real checkpoints to test with."""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import torch

from stormproof.checkpoint import Checkpoint, CommitInfo, Store
from stormproof.checkpoint.manifest import LogMark, encode


def state(step: int) -> dict[str, Any]:
    """What Lightning would save, of a network of 40 numbers, another at each step."""
    weight = torch.arange(40, dtype=torch.float32) + step
    return {"state_dict": {"weight": weight}, "global_step": step, "epoch": step // 100}


def saving(step: int) -> Callable[[BinaryIO], object]:
    return lambda file: torch.save(state(step), file)


def commit(
    store: Store, step: int, *, attempt: int = 1, fence: Callable[[], object] | None = None, **fields: Any
) -> Checkpoint:
    info = CommitInfo(step=step, **{"epoch": step // 100, "world_size": 1, **fields})
    return store.commit(saving(step), info, attempt=attempt, fence=fence)


def filled(folder: Path, steps: Sequence[int] = (10, 20, 30)) -> Store:
    """A folder with one attempt and a checkpoint at each of ``steps``."""
    store = Store(folder)
    store.begin_attempt(store.resolve())
    for step in steps:
        commit(store, step)
    return store


def described(folder: Path, sequence: int, step: int = 10, **fields: Any) -> Checkpoint:
    """A checkpoint as its manifest describes it, without a file."""
    defaults = {
        "epoch": 0, "world_size": 1, "attempt": 1, "sha256": "0" * 64, "bytes": 1, "score": None, "identity": None,
        "run": None, "versions": {}, "finite": True, "healthy": None, "adopted": False, "time": 0.0,
    }  # fmt: skip
    path = folder / f"{sequence:06d}-step-{step}.ckpt"
    return Checkpoint(path=path, sequence=sequence, step=step, **{**defaults, **fields})


def forged(checkpoint: Checkpoint, **fields: Any) -> bytes:
    """A manifest that says something else, with a hash that is right: what a forger would write."""
    said = json.loads(encode(checkpoint, LogMark.of(b""))) | fields | {"manifest_sha256": "0" * 64}
    zeroed = json.dumps(said, indent=1).encode() + b"\n"
    return zeroed.replace(b'"manifest_sha256": "' + b"0" * 64, b'"manifest_sha256": "' + _digits(zeroed))


def _digits(content: bytes) -> bytes:
    return hashlib.sha256(content).hexdigest().encode()


def flip(path: Path, offset: int | None = None) -> None:
    """Flips a bit of a file, of its middle byte by default."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2 if offset is None else offset] ^= 1
    path.write_bytes(content)


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}
