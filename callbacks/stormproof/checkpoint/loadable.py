"""Keeps checkpoints loadable with ``torch.load(weights_only=True)``."""

from __future__ import annotations

import io
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from lightning_utilities.core.rank_zero import rank_zero_warn

from stormproof.errors import NotResumableError
from stormproof.lightning.layer_names import join_names

HYPERPARAMETER_KEYS = ("hyper_parameters", "hparams_type", "datamodule_hyper_parameters", "datamodule_hparams_type")
"""Keys of Lightning's checkpoints that ``fit`` does not read."""
PLAIN_TYPES = {type(None), bool, int, float, complex, str, bytes}
MAX_REPR_LENGTH = 1000
"""Maximum number of characters of a ``repr`` in a checkpoint."""


class LoadableConverter:
    """Makes every checkpoint of a run loadable with ``torch.load(weights_only=True)``, Lightning's default.

    Hyperparameters that torch refuses are left out, because ``fit`` does not read them. Other refused entries come from
    an ``on_save_checkpoint`` hook and are stored pickled, if possible. In ``checkpoint["stormproof"]``, ``left_out``
    maps the names of both to their ``repr``, and ``pickled`` maps top-level keys to tensors of bytes. Each entry is
    named in one warning.
    """

    def __init__(self) -> None:
        self._left_out_reprs: dict[str, str] = {}
        self._warned_names: set[str] = set()

    def convert(self, checkpoint: Mapping[str, Any], state_keys: Collection[str]) -> dict[str, Any]:
        """Returns a shallow copy of a checkpoint without the entries that torch refuses.

        Args:
            checkpoint: Lightning checkpoint with the key ``stormproof``.
            state_keys: Top-level keys with training state, which Lightning restores.
        """
        loadable_checkpoint, pickled_values, names = dict(checkpoint), {}, []
        added_reprs: dict[str, str] = {}  # by hooks
        for key, value in checkpoint.items():
            if key in state_keys:
                continue
            if key in HYPERPARAMETER_KEYS:
                names += self._leave_out_hyperparameters(loadable_checkpoint, key)
            elif not is_loadable_once_staged(value):
                added_reprs[key] = _truncate_repr(value)
                del loadable_checkpoint[key]
                data = _pickle(value)
                if data is not None:
                    pickled_values[key] = data
                names.append(f"{key} ({type_name(value)}{', which cannot be pickled' if data is None else ''})")
        if self._left_out_reprs or added_reprs:
            left_out_reprs = {**self._left_out_reprs, **added_reprs}
            loadable_checkpoint["stormproof"] = {
                **checkpoint["stormproof"],
                "left_out": left_out_reprs,
                "pickled": pickled_values,
            }
        self._warn_once(names)
        return loadable_checkpoint

    def _leave_out_hyperparameters(self, loadable_checkpoint: dict[str, Any], key: str) -> list[str]:
        """Removes refused hyperparameters from ``loadable_checkpoint[key]``, or the key if its value is not a dict."""
        value = loadable_checkpoint[key]
        if type(value) is not dict:
            if is_loadable_once_staged(value):
                return []
            del loadable_checkpoint[key]
            if isinstance(value, type):  # class of the OmegaConf container that is left out, too
                return []
            self._left_out_reprs[key] = _truncate_repr(value)
            return [f"{key} ({type_name(value)})"]
        names = []
        for name, hyperparameter in value.items():
            path = f"{key}/{name}"
            if path in self._left_out_reprs or not _is_loadable_hyperparameter(hyperparameter):
                names.append(f"{path} ({type_name(hyperparameter)})")
                self._left_out_reprs[path] = _truncate_repr(hyperparameter)
        loadable_checkpoint[key] = {
            name: hyperparameter
            for name, hyperparameter in value.items()
            if f"{key}/{name}" not in self._left_out_reprs
        }
        return names

    def _warn_once(self, names: Sequence[str]) -> None:
        new_names = [name for name in names if name not in self._warned_names]
        if not new_names:
            return
        self._warned_names.update(new_names)
        rank_zero_warn(
            f"Checkpoints do not contain {', '.join(new_names)}, because torch.load(weights_only=True) refuses them. "
            "Pass hyperparameters to load_from_checkpoint(). fit(..., weights_only=False) restores other entries, "
            "except those that cannot be pickled."
        )


def restore_pickled(checkpoint: dict[str, Any], weights_only: bool | None) -> None:
    """Restores entries that an ``on_save_checkpoint`` hook added and that were stored pickled.

    Args:
        checkpoint: Loaded checkpoint. Changed in place.
        weights_only: Argument of ``Trainer.fit``. Entries are unpickled, which can execute code, only if False.
    """
    pickled_values = checkpoint.get("stormproof", {}).get("pickled", {})
    if not pickled_values:
        return
    if weights_only is not False:
        rank_zero_warn(
            f"Pickled entries of this checkpoint were not restored: {', '.join(pickled_values)}. If on_load_checkpoint "
            "needs them and you trust the file, pass weights_only=False to fit (with resume=True: to "
            "CheckpointRecovery)."
        )
        return
    for key, data in pickled_values.items():
        checkpoint[key] = torch.load(io.BytesIO(data.numpy().tobytes()), map_location="cpu", weights_only=False)


def check_loadable(content: bytes, name: str) -> None:
    """Checks that torch loads a saved value.

    Args:
        content: The value, saved with ``torch.save``.
        name: Name of the value, for the message.

    Raises:
        NotResumableError: If ``torch.load(weights_only=True)`` refuses it.
    """
    if not _is_content_loadable(io.BytesIO(content)):
        raise make_refused_error([name])


def make_refused_error(names: Sequence[str]) -> NotResumableError:
    """Returns the error for values that cannot be restored."""
    return NotResumableError(
        f"torch.load(weights_only=True) would refuse a checkpoint of this run, because of {join_names(names)}. "
        "Convert these values to tensors or plain Python values in state_dict()."
    )


def _is_loadable_hyperparameter(value: Any) -> bool:
    if isinstance(value, torch.nn.Module):  # saving it to try would copy all weights into memory
        return False
    return is_loadable_once_staged(value)


def _is_plain(value: Any) -> bool:
    """Returns whether torch certainly loads a value. If False, saving and loading it must be tried."""
    value_type = type(value)
    if value_type in {dict, OrderedDict}:
        return all(_is_plain(key) and _is_plain(item) for key, item in value.items())
    if value_type in {list, tuple, set}:
        return all(map(_is_plain, value))
    return is_plain_value(value)


def is_plain_value(value: Any) -> bool:
    """Returns whether a value is not a container and every version of torch loads it."""
    value_type = type(value)
    return value_type in PLAIN_TYPES or (value_type in {torch.Tensor, torch.nn.Parameter} and not value.is_nested)


def _pickle(value: Any) -> torch.Tensor | None:
    """Returns a value as a tensor of bytes, or None if it cannot be pickled."""
    buffer = io.BytesIO()
    try:
        torch.save(value, buffer)
    except Exception:  # noqa: BLE001 (users' classes may raise any exception)
        return None
    return torch.frombuffer(bytearray(buffer.getbuffer()), dtype=torch.uint8)


def type_name(value: Any) -> str:
    """Returns the module and the name of a class, or of the class of a value."""
    value_type = value if isinstance(value, type) else type(value)
    return f"{value_type.__module__}.{value_type.__qualname__}"


def _truncate_repr(value: Any) -> str:
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001 (users' classes may raise any exception)
        return f"<{type_name(value)}>"
    return text if len(text) <= MAX_REPR_LENGTH else f"{text[:MAX_REPR_LENGTH]}…"


def _remove_plain_values(value: Any) -> Any:
    if type(value) in {dict, OrderedDict}:  # a state_dict is an OrderedDict
        return {key: _remove_plain_values(item) for key, item in value.items()}
    if type(value) in {list, tuple}:
        return type(value)(_remove_plain_values(item) for item in value)
    return None if is_plain_value(value) else value.item() if isinstance(value, np.generic) else value


def is_loadable_once_staged(value: Any) -> bool:
    """Returns whether torch loads a value after :class:`~stormproof.checkpoint.host_staging.HostStager` copied it.

    Does not write tensors, which torch always loads. Accepts NumPy scalars, which become Python numbers.
    """
    return _is_plain(value) or is_loadable(_remove_plain_values(value))


def is_loadable(value: Any) -> bool:
    """Returns whether ``torch.load(weights_only=True)`` loads a value, by saving and loading it in memory."""
    buffer = io.BytesIO()
    try:
        torch.save(value, buffer)
    except Exception:  # noqa: BLE001 (users' classes may raise any exception)
        return False
    buffer.seek(0)
    return _is_content_loadable(buffer)


def _is_content_loadable(content: io.BytesIO) -> bool:
    try:
        torch.load(content, weights_only=True)
    except Exception:  # noqa: BLE001 (users' classes may raise any exception)
        return False
    return True
