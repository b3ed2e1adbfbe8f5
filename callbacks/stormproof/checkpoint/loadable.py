"""Keeps checkpoints loadable with ``torch.load(weights_only=True)``."""

from __future__ import annotations

import io
from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from lightning_utilities.core.rank_zero import rank_zero_warn

from stormproof.errors import NotResumableError
from stormproof.lightning.layer_names import join_names

HYPERPARAMETERS = ("hyper_parameters", "hparams_type", "datamodule_hyper_parameters", "datamodule_hparams_type")
"""Keys of Lightning's checkpoints that ``fit`` does not read."""
PLAIN = {type(None), bool, int, float, complex, str, bytes, torch.Tensor, torch.nn.Parameter}
LONGEST_REPR = 1000
"""Maximum number of characters of a ``repr`` in a checkpoint."""


def refused(checkpoint: Any, where: str = "") -> list[str]:
    """Names what ``torch.load(weights_only=True)``, the only way Lightning resumes by default, would not take.

    Tensors are left out: what matters is the type of everything else, and a type can be tried without a file. NumPy
    scalars are accepted, because :class:`~stormproof.checkpoint.host_staging.HostCopy` makes Python numbers of them.

    Args:
        checkpoint: what is to be saved.
        where: the name of ``checkpoint`` itself.

    Returns:
        One ``<key>/<key>: <type>`` for each value of a type that is refused.

    Example:
        >>> from fractions import Fraction
        >>> refused({"step": 1, "hyper_parameters": {"width": 8, "model": Fraction(1, 2)}})
        ['hyper_parameters/model: fractions.Fraction']
    """
    if _loads(_without_tensors(checkpoint)):
        return []
    inside = [found for key, value in _children(checkpoint) for found in refused(value, f"{where}/{key}".lstrip("/"))]
    kind = type(checkpoint)
    return inside or [f"{where}: {kind.__module__}.{kind.__qualname__}"]


class LoadableCheckpoints:
    """Makes every checkpoint of a run loadable with ``torch.load(weights_only=True)``, Lightning's default.

    Hyperparameters that torch refuses are left out, because ``fit`` does not read them. Other refused entries come from
    an ``on_save_checkpoint`` hook and are stored pickled, if possible. In ``checkpoint["stormproof"]``, ``left_out``
    maps the names of both to their ``repr``, and ``pickled`` maps top-level keys to tensors of bytes. Each entry is
    named in one warning.
    """

    def __init__(self) -> None:
        self._left_out: dict[str, str] = {}
        self._named: set[str] = set()
        self._state_is_loadable = False

    def convert(self, checkpoint: Mapping[str, Any], state_keys: Collection[str]) -> dict[str, Any]:
        """Returns a shallow copy of a checkpoint without the entries that torch refuses.

        Args:
            checkpoint: Lightning checkpoint with the key ``stormproof``.
            state_keys: Top-level keys with training state, which Lightning restores.

        Raises:
            NotResumableError: If torch refuses training state.
        """
        state = {key: value for key, value in checkpoint.items() if key in state_keys}
        if not self._state_is_loadable:
            _refuse_state(state)
            self._state_is_loadable = True
        kept, pickled, names = dict(checkpoint), {}, []
        added: dict[str, str] = {}  # by hooks
        for key, value in checkpoint.items():
            if key in state:
                continue
            if key in HYPERPARAMETERS:
                names += self._leave_out(kept, key)
            elif not _is_plain(value) and not _loads(_without_tensors(value)):
                added[key] = _repr(value)
                del kept[key]
                data = _pickled(value)
                if data is not None:
                    pickled[key] = data
                names.append(f"{key} ({_kind(value)}{', which cannot be pickled' if data is None else ''})")
        if self._left_out or added:
            left_out = {**self._left_out, **added}
            kept["stormproof"] = {**checkpoint["stormproof"], "left_out": left_out, "pickled": pickled}
        self._warn(names)
        return kept

    def _leave_out(self, kept: dict[str, Any], key: str) -> list[str]:
        """Removes refused hyperparameters from ``kept[key]``. Removes the key if its value is not a plain dict."""
        value = kept[key]
        if type(value) is not dict:
            if _is_plain(value) or _loads(value):
                return []
            del kept[key]
            if isinstance(value, type):  # class of the OmegaConf container that is left out, too
                return []
            self._left_out[key] = _repr(value)
            return [f"{key} ({_kind(value)})"]
        names = []
        for name, hyperparameter in value.items():
            path = f"{key}/{name}"
            if path in self._left_out or not _is_loadable_hyperparameter(hyperparameter):
                names.append(f"{path} ({_kind(hyperparameter)})")
                self._left_out[path] = _repr(hyperparameter)
        kept[key] = {name: each for name, each in value.items() if f"{key}/{name}" not in self._left_out}
        return names

    def _warn(self, names: Sequence[str]) -> None:
        new = [name for name in names if name not in self._named]
        if not new:
            return
        self._named.update(new)
        rank_zero_warn(
            f"Checkpoints do not contain {', '.join(new)}, because torch.load(weights_only=True) refuses them. "
            "Pass hyperparameters to load_from_checkpoint(). fit(..., weights_only=False) restores other entries, "
            "except those that cannot be pickled."
        )


def restore_pickled(checkpoint: dict[str, Any], weights_only: bool | None) -> None:
    """Restores entries that an ``on_save_checkpoint`` hook added and that were stored pickled.

    Args:
        checkpoint: Loaded checkpoint. Changed in place.
        weights_only: Argument of ``Trainer.fit``. Entries are unpickled, which can execute code, only if False.
    """
    pickled = checkpoint.get("stormproof", {}).get("pickled", {})
    if not pickled:
        return
    if weights_only is not False:
        rank_zero_warn(
            f"Pickled entries of this checkpoint were not restored: {', '.join(pickled)}. If on_load_checkpoint needs "
            "them and you trust the file, pass weights_only=False to fit (with resume=True: to CheckpointRecovery)."
        )
        return
    for key, data in pickled.items():
        checkpoint[key] = torch.load(io.BytesIO(data.numpy().tobytes()), map_location="cpu", weights_only=False)


def _refuse_state(state: Mapping[str, Any]) -> None:
    found = refused(state)
    if found:
        raise NotResumableError(
            f"a checkpoint of this run would not load again, because of {join_names(found)}: a state may hold tensors "
            "and plain Python values only; convert the value in state_dict()"
        )


def _is_loadable_hyperparameter(value: Any) -> bool:
    if isinstance(value, torch.nn.Module):  # a trial would copy all weights into memory
        return False
    return _is_plain(value) or _loads(_without_tensors(value))


def _is_plain(value: Any) -> bool:
    """Returns whether torch certainly loads a value. If False, only a trial shows it."""
    kind = type(value)
    if kind in {dict, OrderedDict}:
        return all(_is_plain(key) and _is_plain(item) for key, item in value.items())
    if kind in {list, tuple, set}:
        return all(map(_is_plain, value))
    return kind in PLAIN


def _pickled(value: Any) -> torch.Tensor | None:
    """Returns a value as a tensor of bytes, or None if it cannot be pickled."""
    buffer = io.BytesIO()
    try:
        torch.save(value, buffer)
    except Exception:  # noqa: BLE001 (classes of users raise what they like)
        return None
    return torch.frombuffer(bytearray(buffer.getbuffer()), dtype=torch.uint8)


def _kind(value: Any) -> str:
    kind = value if isinstance(value, type) else type(value)
    return f"{kind.__module__}.{kind.__qualname__}"


def _repr(value: Any) -> str:
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001 (classes of users raise what they like)
        return f"<{_kind(value)}>"
    return text if len(text) <= LONGEST_REPR else f"{text[:LONGEST_REPR]}…"


def _children(value: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(value, Mapping):
        yield from value.items()
    elif isinstance(value, list | tuple):
        yield from enumerate(value)


def _without_tensors(value: Any) -> Any:
    if type(value) is torch.Tensor or isinstance(value, torch.nn.Parameter):
        return None
    if type(value) in {dict, OrderedDict}:  # a state_dict is the latter
        return {key: _without_tensors(item) for key, item in value.items()}
    if type(value) in {list, tuple}:
        return type(value)(_without_tensors(item) for item in value)
    return value.item() if isinstance(value, np.generic) else value


def _loads(value: Any) -> bool:
    buffer = io.BytesIO()
    try:
        torch.save(value, buffer)
        buffer.seek(0)
        torch.load(buffer, weights_only=True)
    except Exception:  # noqa: BLE001 (classes of users raise what they like)
        return False
    return True
