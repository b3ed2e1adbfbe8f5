"""Objects built from Hydra configs."""

import functools

import hydra

from stormproof_train.activations import Activation, activation_factory
from stormproof_train.config.conf_dir import conf_dir
from stormproof_train.config.hydra_defaults import VERSION_BASE
from stormproof_train.config.plan import Plan, read_plan


def list_choices(group: str) -> list[str]:
    """Returns the options of a group."""
    return sorted(path.stem for path in (conf_dir() / group).glob("*.yaml"))


list_activations = functools.partial(list_choices, "activation")
REPRESENTATIVES = ("relu", "prelu", "crelu", "maxout", "softmax", "swiglu")
"""One activation of each kind: elementwise, with a parameter, widening, narrowing, mixing features, gated."""


@functools.cache
def compose_plan(*overrides: str) -> Plan:
    with hydra.initialize_config_dir(str(conf_dir()), **VERSION_BASE):
        return read_plan(hydra.compose("config", [*overrides]))


def build_activation(name: str, *overrides: str) -> Activation:
    return activation_factory(compose_plan(f"activation={name}", *overrides).activation.factory())
