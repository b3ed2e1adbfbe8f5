"""How much of a run's time went into steps that count."""

from __future__ import annotations


class TrainingTime:
    r"""The effective training time ratio of a run, over all its attempts.

    .. math:: \text{ratio} = \frac{\text{seconds spent on steps that are part of the result}}
        {\text{seconds since the first attempt began}}

    Time between a checkpoint and a crash is lost with the steps in it; so is the time until training goes on.

    Args:
        now: seconds since the epoch, when the first attempt begins.

    Example:
        >>> time = TrainingTime(now=0.0)
        >>> time.training_begins(now=10.0)
        >>> saved = time.state_dict(now=70.0)
        >>> resumed = TrainingTime(now=95.0)  # a crash at 90 lost 20 s
        >>> resumed.load_state_dict(saved)
        >>> resumed.training_begins(now=100.0)
        >>> resumed.ratio(now=100.0)
        0.6

    References:
        The Llama 3 Herd of Models, Grattafiori et al. 2024, section 3.3.4.
    """

    def __init__(self, now: float) -> None:
        self._began = now
        self._counted = 0.0
        self._mark: float | None = None

    def training_begins(self, now: float) -> None:
        """From here on time is spent on steps."""
        self._mark = now

    def training_ends(self, now: float) -> None:
        """Time from here on is lost, until training begins again."""
        self._counted, self._mark = self._spent(now), None

    def ratio(self, now: float) -> float:
        """The share so far, from 0 to 1."""
        return self._spent(now) / max(now - self._began, 1e-9)

    def state_dict(self, now: float) -> dict[str, float]:
        """As plain numbers."""
        return {"began": self._began, "counted": self._spent(now)}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Goes on from ``state``: what was spent since is lost."""
        self._began, self._counted = state["began"], state["counted"]
        self._mark = None

    def _spent(self, now: float) -> float:
        return self._counted + (0.0 if self._mark is None else now - self._mark)
