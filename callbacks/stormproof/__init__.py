"""Lightning callbacks that keep training alive and tell the truth about its health.

Each works alone, in any project's ``Trainer``, with any logger or none. A callback is imported when it is first asked
for: what needs no Lightning, such as :mod:`stormproof.distributed.rank`, is there at once.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    __version__: str
    from stormproof.checkpoint_recovery import CheckpointRecovery
    from stormproof.dead_neuron_detector import DeadNeuronDetector
    from stormproof.divergence_guard import DivergenceGuard
    from stormproof.gradient_norm_monitor import GradientNormMonitor
    from stormproof.hang_watch import HangWatch
    from stormproof.preemption import Preemption
    from stormproof.resumable_loader import resumable
    from stormproof.step_timer import StepTimer
    from stormproof.training_health import TrainingHealth
    from stormproof.units.pieces import Pieces

__all__ = [
    "CheckpointRecovery",
    "DeadNeuronDetector",
    "DivergenceGuard",
    "GradientNormMonitor",
    "HangWatch",
    "Pieces",
    "Preemption",
    "StepTimer",
    "TrainingHealth",
    "resumable",
]

_MODULES = {
    "CheckpointRecovery": "stormproof.checkpoint_recovery",
    "DeadNeuronDetector": "stormproof.dead_neuron_detector",
    "DivergenceGuard": "stormproof.divergence_guard",
    "GradientNormMonitor": "stormproof.gradient_norm_monitor",
    "HangWatch": "stormproof.hang_watch",
    "Pieces": "stormproof.units.pieces",
    "Preemption": "stormproof.preemption",
    "StepTimer": "stormproof.step_timer",
    "TrainingHealth": "stormproof.training_health",
    "resumable": "stormproof.resumable_loader",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return version("stormproof")
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
