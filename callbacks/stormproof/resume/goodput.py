"""Measures the share of a run's time that was spent on steps of the result."""

from __future__ import annotations


class Goodput:
    r"""Effective training time ratio of a run, over all its attempts.

    .. math:: \text{ratio} = \frac{\text{seconds spent on steps that are part of the result}}
        {\text{seconds since the first attempt began}}

    The time from a checkpoint to a crash counts as lost, and so does the time until training resumes.

    Args:
        now: Start time of the first attempt, in seconds since the epoch.

    Example:
        >>> time = Goodput(now=0.0)
        >>> time.start(now=10.0)
        >>> saved = time.state_dict(now=70.0)
        >>> resumed = Goodput(now=95.0)  # a crash at 90 lost 20 s
        >>> resumed.load_state_dict(saved)
        >>> resumed.start(now=100.0)
        >>> resumed.ratio(now=100.0)
        0.6

    References:
        Grattafiori et al., The Llama 3 Herd of Models (2024), section 3.3.4.
    """

    def __init__(self, now: float) -> None:
        self._run_start_time = now
        self._productive_seconds = 0.0
        self._training_start_time: float | None = None

    def start(self, now: float) -> None:
        """Begins to count productive time."""
        self._training_start_time = now

    def stop(self, now: float) -> None:
        """Stops counting productive time until the next :meth:`start`."""
        self._productive_seconds, self._training_start_time = self._compute_productive_seconds(now), None

    def ratio(self, now: float) -> float:
        """Returns the ratio so far, in [0, 1]."""
        return self._compute_productive_seconds(now) / max(now - self._run_start_time, 1e-9)

    def state_dict(self, now: float) -> dict[str, float]:
        """Returns the state as plain numbers."""
        return {"began": self._run_start_time, "counted": self._compute_productive_seconds(now)}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Restores the state. Time since it was saved counts as lost."""
        self._run_start_time, self._productive_seconds = state["began"], state["counted"]
        self._training_start_time = None

    def _compute_productive_seconds(self, now: float) -> float:
        return self._productive_seconds + (
            0.0 if self._training_start_time is None else now - self._training_start_time
        )
