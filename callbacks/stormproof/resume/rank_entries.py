"""Captures entries of ``on_save_checkpoint`` hooks in which a rank differs from rank 0."""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import blake2b
from typing import Any

import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import nn

from stormproof.checkpoint.loadable import is_loadable_once_staged
from stormproof.data.fingerprint import digest_tensor
from stormproof.distributed.collectives import broadcast, world_size

Entry = tuple[Sequence[Any], Any]
_LIGHTNING_KEYS = {
    "epoch", "global_step", "pytorch-lightning_version", "loops", "callbacks", "optimizer_states", "lr_schedulers",
    "hparams_name", "hyper_parameters",
}  # fmt: skip
"""Top-level keys that are restored separately or are equal on all ranks."""
_INCOMPARABLE = "incomparable"


def capture_entries(
    checkpoint: Mapping[str, Any], module: nn.Module, *, is_rank_zero: bool
) -> tuple[list[Entry], list[str]]:
    """Returns the entries of a checkpoint that differ from rank 0's. All ranks call it together.

    For example, each rank has its own average of running statistics. Rank 0 stores its checkpoint as a whole. If a dict
    has the same keys as rank 0's, only the values that differ are stored, otherwise the whole dict. A top-level entry
    that only rank 0 has is restored on all ranks.

    Args:
        checkpoint: Checkpoint of this rank.
        module: LightningModule. Skips tensors that have the name and shape of a parameter, because averages of
            parameters are equal on all ranks, and its buffers, which are captured separately.
        is_rank_zero: Whether this is rank 0.

    Returns:
        ``(keys, value)`` for each entry that differs; and the names of entries that are not stored, because they cannot
        be compared or ``torch.load(weights_only=True)`` refuses them. Both are empty on rank 0.
    """
    if world_size() == 1:
        return [], []
    digests = _DigestComputer(module).compute(
        {key: value for key, value in checkpoint.items() if key not in _LIGHTNING_KEYS}
    )
    rank_zero_digests = broadcast(digests if is_rank_zero else None)
    entries: list[Entry] = []
    unsaved_names = []
    for keys, value, digest in (
        [] if is_rank_zero else _find_differing(checkpoint, digests, rank_zero_digests or {}, ())
    ):
        if digest == _INCOMPARABLE or not is_loadable_once_staged([keys, value]):
            unsaved_names.append("/".join(map(str, keys)))
        else:
            entries.append((keys, value))
    return entries, unsaved_names


def warn_about_unsaved(names_by_rank: Sequence[Sequence[str]]) -> None:
    """Warns if entries of a rank are not stored. Call it on rank 0 with the names of :func:`capture_entries`."""
    names = [f"{name} (rank {rank})" for rank, names in enumerate(names_by_rank) for name in names]
    if names:
        rank_zero_warn(
            "These checkpoint entries may differ from rank 0's and are not saved, because they cannot be compared or "
            f"torch.load(weights_only=True) refuses them: {', '.join(names[:5])}. A resume may not be exact."
        )


def restore_entries(checkpoint: dict[str, Any], entries: Iterable[Entry]) -> None:
    """Replaces rank 0's entries with the entries of this rank. Changes ``checkpoint``.

    Skips an entry if the dict that contained it is not in the checkpoint, for example because it was stored pickled.
    """
    for keys, value in entries:
        container: Any = checkpoint
        for key in keys[:-1]:
            container = container.get(key) if isinstance(container, dict) else None
        if isinstance(container, dict):
            container[keys[-1]] = value


def _find_differing(
    value: Mapping[Any, Any], digests: Mapping[Any, Any], rank_zero_digests: Mapping[Any, Any], keys: tuple[Any, ...]
) -> Iterator[tuple[list[Any], Any, Any]]:
    """Yields keys, value and digest of the entries that differ or cannot be compared."""
    for key, digest in digests.items():
        rank_zero_digest = rank_zero_digests.get(key)
        if isinstance(digest, dict) and isinstance(rank_zero_digest, dict) and digest.keys() == rank_zero_digest.keys():
            yield from _find_differing(value[key], digest, rank_zero_digest, (*keys, key))
        elif digest != rank_zero_digest or digest == _INCOMPARABLE:
            yield [*keys, key], value[key], digest


class _DigestComputer:
    """Computes digests of values: a dict for a dict, otherwise a string."""

    def __init__(self, module: nn.Module) -> None:
        self._parameter_shapes = {name: parameter.shape for name, parameter in module.named_parameters()}
        self._buffer_addresses = {buffer.data_ptr() for buffer in module.buffers() if buffer.layout == torch.strided}

    def compute(self, value: Any, name: Any = None) -> Any:
        try:
            return self._compute(value, name)
        except Exception:  # noqa: BLE001 (a user's object may raise any exception, a container may contain itself)
            return _INCOMPARABLE

    def _compute(self, value: Any, name: Any) -> Any:
        if isinstance(value, dict) and {*map(type, value)} <= {str, int, float, bool}:
            return {key: self.compute(item, key) for key, item in value.items()}
        if isinstance(value, torch.Tensor):
            return "skipped" if self._is_skipped(value, name) else digest_tensor(value)
        if isinstance(value, list | tuple) and any(
            isinstance(item, torch.Tensor | list | tuple | dict) for item in value
        ):
            return repr([self._compute(item, None) for item in value])
        return blake2b(pickle.dumps(value), digest_size=16).hexdigest()

    def _is_skipped(self, tensor: torch.Tensor, name: Any) -> bool:
        is_average = isinstance(name, str) and tensor.shape == self._parameter_shapes.get(name)
        return is_average or (tensor.layout == torch.strided and tensor.data_ptr() in self._buffer_addresses)
