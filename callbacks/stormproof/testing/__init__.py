"""Fault injection for training runs, and a conformance suite for storages of checkpoints.

Names are imported when they are first used, so that processes of the suite do not import Lightning.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stormproof.testing.fault_injection import (
        HOOKS,
        POSITIONS,
        FaultInjector,
        faults_from_environment,
        flip_bit,
        truncate_file,
    )
    from stormproof.testing.storage_suite import StorageSuite

__all__ = [
    "HOOKS",
    "POSITIONS",
    "FaultInjector",
    "StorageSuite",
    "faults_from_environment",
    "flip_bit",
    "truncate_file",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = "storage_suite" if name == "StorageSuite" else "fault_injection"
    return getattr(import_module(f"stormproof.testing.{module}"), name)
