"""Rebuilds the network of an artifact in PyTorch."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from stormproof_train.activations import activation_factory
from stormproof_train.compression.structure.rebuild import apply_structure
from stormproof_train.config.conf_dir import conf_dir
from stormproof_train.config.signature_binding import bind
from stormproof_train.errors import UserError
from stormproof_train.initialization.checkpoint import read_checkpoint
from stormproof_train.run.trained_weights import check_targets, shipped_targets

_INJECTED_ARGUMENTS = ("input_shape", "num_outputs", "num_classes")


def load_network(path: str | Path, allowed: Collection[str] = ()) -> nn.Module:
    """Builds the network of a compression's ``model.ckpt`` with its weights, in evaluation mode.

    Args:
        path: Path of the file. It is not executed: only targets of the shipped configs are built.
        allowed: Import paths of further models and activations that it may use.

    Raises:
        UserError: If the file is missing, has another format, or uses a target that is not allowed.
    """
    checkpoint = read_checkpoint(Path(path))
    network_config: Any = checkpoint.get("network")
    if not isinstance(network_config, Mapping):
        raise UserError(f"{path} is not a model.ckpt of a compression: it does not describe its network")
    own_targets = shipped_targets(conf_dir())
    for group in ("model", "activation"):
        check_targets(
            network_config[group], group, own_targets[group] | set(allowed), Path(path), "give allowed=[…] its path"
        )
    activation = activation_factory(bind(network_config["activation"], "activation", num_tensor_args=1).factory())
    arguments = {name: network_config[name] for name in _INJECTED_ARGUMENTS} | {"activation": activation}
    network = bind(network_config["model"], "model", frozenset(arguments)).build(**arguments)
    network = apply_structure(network, network_config["shapes"], network_config["ranks"])
    network.load_state_dict(checkpoint["state_dict"])
    return network.eval()
