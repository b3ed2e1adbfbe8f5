"""Lightning callbacks that keep training alive and tell the truth about its health.

Each works alone, in any project's ``Trainer``, with any logger or none.
"""

from stormproof.step_timer import StepTimer

__all__ = ["StepTimer"]
