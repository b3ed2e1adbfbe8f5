"""Lightning callbacks for exact recovery, monitoring and diagnosis of training runs.

Each callback works without the others, in any project's ``Trainer``, with any logger or none. Names are imported when
they are first used, so modules without Lightning, such as :mod:`stormproof.distributed.rank`, import quickly.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    __version__: str
    from stormproof.checkpoint_recovery import CheckpointRecovery
    from stormproof.dead_neuron_detector import DeadNeuronDetector
    from stormproof.divergence_guard import DivergenceGuard
    from stormproof.errors import DivergedError, PreemptedExit, StormproofError
    from stormproof.finding import Finding, Problem, Severity
    from stormproof.gradient_norm_monitor import GradientNormMonitor
    from stormproof.hang_watch import HangWatch
    from stormproof.health.rule import NotEnoughEvidence, Rule
    from stormproof.health.rules import default_rules
    from stormproof.long_waits import long_wait
    from stormproof.preemption import Preemption
    from stormproof.resumable_loader import resumable
    from stormproof.step_timer import StepTimer
    from stormproof.training_health import TrainingHealth
    from stormproof.units.maxout_pieces import MaxoutPieces

__all__ = [
    "CheckpointRecovery",
    "DeadNeuronDetector",
    "DivergedError",
    "DivergenceGuard",
    "Finding",
    "GradientNormMonitor",
    "HangWatch",
    "MaxoutPieces",
    "NotEnoughEvidence",
    "PreemptedExit",
    "Preemption",
    "Problem",
    "Rule",
    "Severity",
    "StepTimer",
    "StormproofError",
    "TrainingHealth",
    "default_rules",
    "long_wait",
    "resumable",
]

_MODULES = {
    "CheckpointRecovery": "stormproof.checkpoint_recovery",
    "DeadNeuronDetector": "stormproof.dead_neuron_detector",
    "DivergedError": "stormproof.errors",
    "DivergenceGuard": "stormproof.divergence_guard",
    "Finding": "stormproof.finding",
    "GradientNormMonitor": "stormproof.gradient_norm_monitor",
    "HangWatch": "stormproof.hang_watch",
    "MaxoutPieces": "stormproof.units.maxout_pieces",
    "NotEnoughEvidence": "stormproof.health.rule",
    "PreemptedExit": "stormproof.errors",
    "Preemption": "stormproof.preemption",
    "Problem": "stormproof.finding",
    "Rule": "stormproof.health.rule",
    "Severity": "stormproof.finding",
    "StepTimer": "stormproof.step_timer",
    "StormproofError": "stormproof.errors",
    "TrainingHealth": "stormproof.training_health",
    "default_rules": "stormproof.health.rules",
    "long_wait": "stormproof.long_waits",
    "resumable": "stormproof.resumable_loader",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return version("stormproof")
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
